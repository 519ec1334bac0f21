"""A child that does not outlive its parent, however the parent ends."""

import os
import signal
import threading
import time

POLL = 0.3  # seconds


def die_with_parent(parent: int) -> None:
    """Kill this process once `parent` (a process id) is not its parent any more. Portable, unlike PR_SET_PDEATHSIG,
    and not bound to the thread that started it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
