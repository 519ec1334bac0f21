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


class Locked(TimeoutError):
    """Another process has a lock, and does not let it go."""


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, timeout: float, what: Path, *, shared: bool = False) -> None:
    """Lock the open file `what`. Raises Locked after `timeout` seconds."""
    end, waits = time.monotonic() + timeout, pauses(0.0005, 0.02)
    while not try_lock(descriptor, shared=shared):
        if time.monotonic() > end:
            raise Locked(errno.ETIMEDOUT, f"locked by another process for {timeout:g} s", str(what))
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
