"""Preparing items ahead in a thread, a bounded number of them, where that saves time.

Threads take turns at Python's lock, and to wake one takes a tenth of a millisecond or more. So a consumer that is back
at once for every item makes the next one itself; and the thread works when the consumer is away for longer, or beside
it where they can do so without the lock.
"""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_BRIEF = 0.001  # seconds: away for less, a consumer had better make its items itself
_LOOK = 0.02  # seconds after which the thread looks whether such a consumer is away for longer this time

_alive: weakref.WeakSet["Prefetcher[Any]"] = weakref.WeakSet()


class _Place(Generic[T]):
    """An item's place in the line: the item or an error, once it is `done` by the thread `by`."""

    __slots__ = ("by", "done", "error", "item")

    def __init__(self) -> None:
        self.by, self.done = threading.get_ident(), False
        self.item: T | None = None
        self.error: BaseException | None = None


class Prefetcher(Iterator[T]):
    """Runs an iterator, and makes an item of each thing that it gives: in a thread, at most `depth` items ahead, or in
    that of a consumer which is back within a millisecond and finds none made. One thing at a time; with `at_once`, the
    consumer and the thread may each be making an item. Errors are raised to the consumer, in their place.

    The iterator is closed in the thread, when it ends or when this is closed; what it may wait for then is ended by
    `interrupt`.
    """

    def __init__(
        self,
        things: Iterator[S],
        depth: int,
        make: Callable[[S], T] = lambda thing: thing,  # type: ignore[assignment, return-value]
        *,
        at_once: bool = False,
        interrupt: Callable[[], object] = lambda: None,
        name: str = "shardline-prefetch",
    ) -> None:
        self._things, self._depth, self._make, self._at_once = things, depth, make, at_once
        self._interrupt = interrupt
        self._line: deque[_Place[T]] = deque()
        self._closed = self._ended = False  # `_ended`: nothing comes after the line
        self._error: BaseException | None = None  # why, if it wasn't the end
        self._turn: int | None = None  # the thread that runs the iterator now
        self._helping = False  # whether the consumer makes one of the line's items now
        self._quick = self._waiting = False  # the consumer: whether it was back at once, and whether it waits now
        self._left = time.perf_counter()  # when it was last given an item
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _alive.add(self)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._is_my_turn():
                self._add()
        finally:
            close_items(self._things)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_my_turn(self) -> bool:
        """Wait until the thread is to make an item. False when there is none to make any more."""
        with self._changed:
            while self._turn is not None or not (self._closed or self._ended or self._is_wanted()):
                self._changed.wait(None if self._is_full() else _LOOK)
            if self._closed or self._ended:
                return False
            self._turn = threading.get_ident()
            return True

    def _is_full(self) -> bool:
        return len(self._line) - self._helping >= self._depth

    def _is_wanted(self) -> bool:
        if self._is_full() or self._at_once or not self._quick:
            return not self._is_full()
        if self._waiting:
            return not self._line
        return time.perf_counter() - self._left > _BRIEF

    # -- both ------------------------------------------------------------------------------------------------------

    def _add(self) -> None:
        """Make the next item and put it in line, for which it is this thread's turn."""
        place = _Place[T]()
        try:
            try:
                thing = next(self._things)
            except StopIteration:
                self._ended = True
                return
            except BaseException as error:
                self._ended, self._error = True, error
                raise
            with self._changed:
                self._line.append(place)
                if self._at_once:
                    self._turn = None
                    if self._waiting:
                        self._changed.notify_all()
            place.item = self._make(thing)
        except BaseException as error:
            place.error = error
            if place.by != self._thread.ident and not isinstance(error, Exception):
                raise  # an interrupt, at once
        finally:
            with self._changed:
                place.done = True
                if self._turn == place.by:
                    self._turn = None
                if self._waiting or self._ended:
                    self._changed.notify_all()

    # -- the consumer ----------------------------------------------------------------------------------------------

    def __next__(self) -> T:
        try:
            self._quick = time.perf_counter() - self._left < _BRIEF
            while self._had_better_help():
                try:
                    self._add()
                finally:
                    self._helping = False
            return self._take()
        finally:
            self._left = time.perf_counter()

    def _had_better_help(self) -> bool:
        """Wait until the line's first item is done, or until the consumer had better make one: then it is its turn."""
        with self._changed:
            while not self._is_settled():
                if self._quick and self._turn is None and self._has_room():
                    self._turn, self._helping = threading.get_ident(), True
                    return True
                self._waiting = True
                self._changed.notify_all()
                try:
                    self._changed.wait()
                finally:
                    self._waiting = False
            return False

    def _has_room(self) -> bool:
        """For an item that the consumer makes, besides those that aren't done."""
        return not (self._closed or self._ended) and (not self._line or (self._at_once and not self._is_full()))

    def _take(self) -> T:
        """The line's first item, which is done, or why there is none."""
        with self._changed:
            if not self._line:
                raise self._error or StopIteration
            place = self._line.popleft()
            if self._at_once or place.by != threading.get_ident():
                self._changed.notify_all()  # there is room now
        if place.error is not None:
            self._ended, self._error = True, place.error
            raise place.error
        return place.item  # type: ignore[return-value]

    def _is_settled(self) -> bool:
        return self._line[0].done if self._line else self._closed or self._ended

    def close(self, wait: bool = True) -> None:
        """End the thread, after the item that is being made. In a forked process there is none to end.

        Whatever runs amid other code, as garbage collection does, must not `wait`: it may be in a thread, or hold a
        lock, that the item needs.
        """
        if self._process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._line.clear()
            self._changed.notify_all()
        self._interrupt()
        if wait and self._thread is not threading.current_thread():
            if self._turn == threading.get_ident():
                self._turn = None  # an interrupt came between the item and saying so
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
