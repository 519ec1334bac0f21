"""File locks (flock), polled: a process that is stopped while it holds one costs a time-out and no hang."""

import errno
import fcntl
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path


def pauses(first: float, last: float) -> Iterator[float]:
    """Seconds to wait between tries: growing, with jitter."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads the tries of several processes
        pause = min(last, pause * 1.5)


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, timeout: float) -> None:
    end, waits = time.monotonic() + timeout, pauses(0.0005, 0.02)
    while not try_lock(descriptor):
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, f"its index has been locked by another process for {timeout:g} s")
        time.sleep(next(waits))


def unlock(descriptor: int) -> None:
    """Let the lock go at once: a forked child may hold another descriptor of the same open file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
