"""A supervised command: it and all that it starts end when its owner does, however the owner ends.

    python flows/tasks/supervisor.py GRACE COMMAND…

Standard input is a pipe whose other end the owner holds: when it closes (the owner left, or was killed), or on SIGTERM
or SIGINT, the command gets that signal, has GRACE seconds to save and leave, and is killed after. Then whatever it left
behind is killed too: on Linux even what has lost its parent or is in another session, since orphans are adopted
(prctl PR_SET_CHILD_SUBREAPER); elsewhere what is still below it.

A process of its own, because a flow that is killed can't clean up. It imports nothing of the project.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Supervisor:
    """Runs one command; `stop` is its signal handler."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._process: subprocess.Popen[bytes] | None = None
        self._signum: int | None = None

    def run(self, command: list[str]) -> int:
        """Returns the command's exit code, 128 + signal when a signal ended it."""
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if self._signum is not None:
            self._process.send_signal(self._signum)
        code = self._process.wait()
        sweep()
        return code if code >= 0 else 128 - code

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Pass the first signal on, and set the time limit."""
        if self._signum is not None:
            return
        self._signum = signum
        if self._process is not None:
            self._process.send_signal(signum)
        limit = threading.Timer(self.grace, kill_below)
        limit.daemon = True
        limit.start()


def sweep() -> None:
    """Kill all descendants, and those that they start meanwhile, until none is left."""
    while left := kill_below():
        psutil.wait_procs(left, timeout=1)


def kill_below() -> list[psutil.Process]:
    """Kill the descendants that there are now. Doesn't wait: that would take the command's exit code from `run`."""
    left = [process for process in psutil.Process().children(recursive=True) if _runs(process)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def watch_owner() -> None:
    """Turn the end of standard input into SIGTERM."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(grace: str, *command: str) -> int:
    adopt_orphans()
    supervisor = Supervisor(float(grace))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, supervisor.stop)
    threading.Thread(target=watch_owner, daemon=True).start()
    return supervisor.run(list(command))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
