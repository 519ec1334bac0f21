"""Preparing items ahead in a thread, a bounded number of them."""

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_alive: weakref.WeakSet["Prefetcher[Any]"] = weakref.WeakSet()


class Prefetcher(Iterator[T]):
    """Runs an iterator in a thread, at most `depth` items ahead; its exceptions are raised to the consumer.

    The iterator is closed in that thread, when it ends or when this is closed.
    """

    def __init__(self, items: Iterator[T], depth: int, name: str = "shardline-prefetch") -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _alive.add(self)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._ready.append(item)
                    del item  # the consumer's alone: a batch's memory comes back when it lets go
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
        except BaseException as error:
            self._error = error
        finally:
            close_items(self._items)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        raise self._error or StopIteration

    def close(self, wait: bool = True) -> None:
        """End the thread, after the item that it is making. In a forked process there is none to end.

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
