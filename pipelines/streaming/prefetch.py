"""Preparing items ahead in a thread, a bounded number of them, where that saves time.

Threads take turns at Python's lock, and to wake one takes a tenth of a millisecond or more. So a consumer that is back
at once for every item makes the next one itself, and the thread works when the consumer is away for longer.
"""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_BRIEF = 0.001  # seconds: away for less, a consumer had better make its items itself
_LOOK = 0.02  # seconds after which the thread looks whether such a consumer is away for longer this time

_alive: weakref.WeakSet["Prefetcher[Any]"] = weakref.WeakSet()


class Prefetcher(Iterator[T]):
    """Runs an iterator in a thread, at most `depth` items ahead, or in that of a consumer which is back within a
    millisecond and finds nothing made; never in both at once. Its exceptions are raised to the consumer.

    The iterator is closed in the thread, when it ends or when this is closed.
    """

    def __init__(self, items: Iterator[T], depth: int, name: str = "shardline-prefetch") -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self._maker: int | None = None  # the thread that runs the iterator now
        self._quick = self._waiting = False  # the consumer: whether it was back at once, and whether it waits now
        self._left = time.perf_counter()  # when it was last given an item
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _alive.add(self)

    def _run(self) -> None:
        try:
            while self._is_my_turn():
                item = next(self._items)
                with self._changed:
                    self._ready.append(item)
                    del item  # the consumer's alone: a batch's memory comes back when it lets go
                    self._maker = None
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
        finally:
            close_items(self._items)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_my_turn(self) -> bool:
        """Wait until the thread is to make an item. False when there is none to make any more."""
        with self._changed:
            while self._maker is not None or not (self._closed or self._ended or self._is_wanted()):
                full = len(self._ready) >= self._depth
                self._changed.wait(None if full else _LOOK)
            if self._closed or self._ended:
                return False
            self._maker = threading.get_ident()
            return True

    def _is_wanted(self) -> bool:
        if len(self._ready) >= self._depth or not self._quick:
            return len(self._ready) < self._depth
        if self._waiting:
            return not self._ready
        return time.perf_counter() - self._left > _BRIEF

    def __next__(self) -> T:
        mine = False
        try:
            with self._changed:
                self._quick = time.perf_counter() - self._left < _BRIEF
                if not self._quick or self._ready or self._maker or self._ended or self._closed:
                    return self._take()
                mine, self._maker = True, threading.get_ident()
            return next(self._items)
        except BaseException as error:
            if mine:
                self._error, self._ended = None if isinstance(error, StopIteration) else error, True
            raise
        finally:
            self._left = time.perf_counter()
            if mine:
                self._maker = None  # the thread will see

    def _take(self) -> T:
        """The next item that the thread has made or makes."""
        self._waiting = True
        self._changed.notify_all()
        try:
            self._changed.wait_for(lambda: self._ready or self._ended)
        finally:
            self._waiting = False
        if self._ready:
            self._changed.notify_all()  # there is room now
            return self._ready.popleft()
        raise self._error or StopIteration

    def close(self, wait: bool = True) -> None:
        """End the thread, after the item that is being made. In a forked process there is none to end.

        Whatever runs amid other code, as garbage collection does, must not `wait`: it may be in a thread, or hold a
        lock, that the item needs.
        """
        if self._process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if wait and self._thread is not threading.current_thread():
            if self._maker == threading.get_ident():
                self._maker = None  # an interrupt came between the item and saying so
            self._thread.join()


@atexit.register
def _end_all() -> None:
    """No thread may be amid native code when the interpreter ends."""
    for prefetcher in list(_alive):
        prefetcher.close()


def close_items(items: Iterator[object]) -> None:
    """End a generator or a Prefetcher."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
