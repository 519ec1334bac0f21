"""A child that does not outlive its parent, however the parent ends."""

import ctypes
import os
import signal
import sys
import threading
import time

#: The environment variable by which an agent tells its ranks its process id.
AGENT_PID = "SHARDLINE_AGENT_PID"
POLL = 0.3  # seconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Kill this process once `parent` (a process id) is not its parent any more.

    A thread watches, which is portable. On Linux the kernel does so too, which reaches even a process that is stopped;
    it counts the end of the *thread* that started this process, which waits for it in our launchers.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-death", daemon=True).start()
