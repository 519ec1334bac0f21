"""Opening of shards, and fetching them ahead where they aren't on this machine.

The order is known, so the shards that come next are fetched by a few threads while the batches of those before are
consumed. A local lake's files are mapped when they are needed, and nothing runs ahead.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from pipelines.streaming.arrays import Ints
from storage.cache import Tiered
from storage.errors import Cancelled
from storage.lake import StoredObject
from storage.objects.retries import until

DEFAULT_AHEAD = 256 << 20  # bytes
_THREADS = 4
_THREADS_FAR = 16  # of small shards, where a store's connections are slow
_IDLE = 2  # threads that look for what may be fetched; others end
# Bytes under way, from which on no further shard is begun:
_FIRST = 32 << 20  # at first, when a large one comes alone and so sooner
_TOGETHER = 160 << 20  # later
_GRACE = 5.0  # seconds that closing waits for fetches under way

_COLUMNS = tuple(column.name for column in fields(StoredObject))

Opened = tuple[pa.Buffer, bool]  # a shard's bytes, and whether they are memory of this process


@dataclass
class _Course:
    """What is fetched ahead: shards in the order of need, those under way or here, and their bytes."""

    shards: Iterator[tuple[int, int]]  # (epoch, shard)
    is_open: Callable[[int], bool]
    epoch: int = field(default=0, init=False)  # which the consumer is in
    next: tuple[int, int] | None = field(default=None, init=False)
    opening: set[int] = field(default_factory=set, init=False)  # by the consumer, so that no thread fetches them, too
    here: dict[int, Future[Opened]] = field(default_factory=dict, init=False)
    bytes: int = field(default=0, init=False)
    under_way: int = field(default=0, init=False)  # bytes that are being fetched
    busy: int = field(default=0, init=False)  # threads that fetch
    workers: int = field(default=0, init=False)  # and all that run ahead
    begun: bool = field(default=False, init=False)  # whether the first one is here
    ended: bool = field(default=False, init=False)
    threads: list[threading.Thread] = field(default_factory=list, init=False)


class Fetcher:
    """Opens the shards of `parts`, numbered through: tables of shards (of manifests), each with what they come through.

    After `start`, it fetches ahead up to `ahead` bytes of shards that aren't opened yet, or one shard where that is
    larger. What failed before it was needed is tried again then. It can be pickled and survives a fork, both without
    what it has ahead.
    """

    def __init__(self, parts: Sequence[tuple[Tiered, pa.Table]], ahead: int = DEFAULT_AHEAD) -> None:
        self.parts = [(tiers, table.select([c for c in _COLUMNS if c in table.column_names])) for tiers, table in parts]
        self.ahead = ahead
        self._ends = np.cumsum([len(table) for _, table in self.parts])
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._course: _Course | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Fetcher, (self.parts, self.ahead)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def describe(self, index: int) -> str:
        """A name for shard `index` that a person can find."""
        tiers, table, row = self._find(index)
        return tiers.zone.describe(table["path"][row].as_py())

    @property
    def remote(self) -> bool:
        """Whether shards have a way to come, so that it pays to fetch them ahead."""
        return any(tiers.zone.root is None or tiers.node or tiers.hot for tiers, _ in self.parts)

    def open(self, index: int) -> Opened:
        """Shard `index`, plain and intact: the one fetched ahead, or fetched now. Raises DataError (and LakeError,
        DigestError), naming the object, and Cancelled where the course was interrupted."""
        self._guard()
        course = self._course
        if course is None:
            return self._fetch(index)
        with self._changed:
            if course.ended:
                raise Cancelled(f"{self.describe(index)}: nobody waits for it any more")
            course.opening.add(index)
            future = course.here.get(index)
            if future is None or (future.done() and future.exception()):  # perhaps long ago: what counts is now
                future = self._apart(course, index)
            try:
                self._changed.wait_for(lambda: course.ended or future.done())
            finally:
                self._drop(course, index)
            if not future.done():
                raise Cancelled(f"{self.describe(index)}: nobody waits for it any more")
        return future.result()

    def _apart(self, course: _Course, index: int) -> Future[Opened]:
        """Fetch a shard now, in a thread of its own: so that waiting for it can be interrupted."""
        future: Future[Opened] = Future()
        self._begin(course, self._into, course, index, future)
        return future

    @staticmethod
    def _begin(course: _Course, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, name="shardline-fetch", daemon=True)
        thread.start()
        course.threads = [*(other for other in course.threads if other.is_alive()), thread]

    def _into(self, course: _Course, index: int, future: Future[Opened]) -> None:
        try:
            with until(lambda: course.ended):
                future.set_result(self._fetch(index))
        except BaseException as error:
            future.set_exception(error)
        with self._changed:
            self._changed.notify_all()

    def is_here(self, index: int) -> bool:
        """Whether shard `index` can be opened without waiting for one on its way. Without a course there is none."""
        self._guard()
        course = self._course
        if course is None:
            return True
        with self._changed:
            future = course.here.get(index)
        return future is not None and future.done()

    def _find(self, index: int) -> tuple[Tiered, pa.Table, int]:
        """What a shard comes through, its table, and its row there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        tiers, table = self.parts[part]
        return tiers, table, index - int(self._ends[part]) + len(table)

    def stored(self, index: int) -> StoredObject:
        """What the lake holds of shard `index`."""
        _, table, row = self._find(index)
        return object_of(table, row)

    def _fetch(self, index: int) -> Opened:
        tiers, table, row = self._find(index)
        return tiers.open(object_of(table, row))

    def _drop(self, course: _Course, index: int) -> None:
        if course.here.pop(index, None) is not None:
            course.bytes -= self._bytes(index)
            self._changed.notify_all()

    def _bytes(self, index: int) -> int:
        _, table, row = self._find(index)
        return int(table["plain_bytes" if "plain_bytes" in table.column_names else "bytes"][row].as_py())

    # -- ahead -----------------------------------------------------------------------------------------------------

    def start(self, order: Iterable[tuple[int, Ints]], is_open: Callable[[int], bool]) -> object:
        """Fetch ahead along `order`, pairs of an epoch and shards in the order of need, but for those that are open.
        Returns what `stop` may be given, so that it stops nothing that was started later."""
        self.stop()
        if not self.remote or not self.ahead:
            return None
        course = self._course = _Course(((epoch, index) for epoch, part in order for index in part.tolist()), is_open)
        with self._changed:
            self._add_worker(course)
        return course

    def _add_worker(self, course: _Course) -> None:
        """One more thread that runs ahead: one at least looks for what may be fetched."""
        self._begin(course, self._run, course)
        course.workers += 1

    def reached(self, epoch: int) -> None:
        """Say which epoch the batches are in: what is fetched is of that one and the next."""
        if self._course is not None:
            with self._changed:
                self._course.epoch = epoch
                self._changed.notify_all()

    def _guard(self) -> None:
        if self._process != os.getpid():  # forked: the threads are the parent's
            self._reset()

    def interrupt(self) -> None:
        """Fetch no further. Whoever waits for a shard gets Cancelled, at once and until `stop`."""
        self._guard()
        course = self._course
        if course is not None:
            with self._changed:
                course.ended = True
                self._changed.notify_all()

    def stop(self, started: object = None) -> None:
        """Fetch no further, and let go of what is ahead. Waits a little for what is under way."""
        self._guard()
        course = self._course
        if course is None or (started is not None and started is not course):
            return
        self.interrupt()
        self._course, end = None, time.monotonic() + _GRACE
        for thread in course.threads:
            if thread is not threading.current_thread():  # which collects garbage, too
                thread.join(max(0.0, end - time.monotonic()))

    def _run(self, course: _Course) -> None:
        while (job := self._next(course)) is not None:
            index, future = job
            self._into(course, index, future)
            with self._changed:
                course.begun = True
                course.busy -= 1
                course.under_way -= self._bytes(index)
                self._changed.notify_all()

    def _next(self, course: _Course) -> tuple[int, Future[Opened]] | None:
        """The next shard to fetch, once there is room for it; None at the end."""
        with self._changed:
            while not course.ended:
                course.opening = {index for index in course.opening if not course.is_open(index)}
                while course.next is None or self._is_at_hand(course, course.next[1]):
                    course.next = next(course.shards, None)
                    if course.next is None:
                        course.workers -= 1
                        return None
                    if course.next[0] > course.epoch + 1:
                        break
                epoch, index = course.next
                size = self._bytes(index)
                room = not course.bytes or course.bytes + size <= self.ahead
                few = course.under_way < (_TOGETHER if course.begun else _FIRST)
                if epoch <= course.epoch + 1 and room and few and course.busy < self._most(index):
                    course.next = None
                    course.bytes += size
                    course.under_way += size
                    course.busy += 1
                    if course.busy == course.workers:
                        with suppress(RuntimeError):  # no further thread can be started
                            self._add_worker(course)
                    future = course.here[index] = Future()
                    return index, future
                if course.workers - course.busy > _IDLE:
                    break
                self._changed.wait()
            course.workers -= 1
            return None

    def _most(self, index: int) -> int:
        """How many shards may be fetched at once, where `index` is the next."""
        zone = self._find(index)[0].zone
        return _THREADS_FAR if zone.root is None and zone.reader.far else _THREADS

    @staticmethod
    def _is_at_hand(course: _Course, index: int) -> bool:
        return index in course.here or index in course.opening or course.is_open(index)


def object_of(table: pa.Table, row: int) -> StoredObject:
    """The object in a row of a manifest's table."""
    values = {name: table[name][row].as_py() for name in table.column_names if name in _COLUMNS}
    return StoredObject(**{"plain_bytes": values["bytes"], **values})  # manifests of format 1 know but one size
