"""Locks of what survives a fork."""

import os
import threading
import weakref


class ForkLock:
    """A lock (`with`) that is free in a forked child, though another thread of the parent held it. The child finds what
    it guards as that thread had left it: this must do no harm."""

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_locks: "weakref.WeakSet[ForkLock]" = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _locks:
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
