"""Whole batches out of open shards: one vectorised copy a column, however many shards the batch touches.

A sample's place is an address: where its shard's column lies in memory, plus its row. So a batch is one gather by
addresses, without grouping by shard and without putting the rows back in order. Places are found for a block of batches
at once, copies are made for a few. Addresses are safe because a shard is checked when it is opened, and a block holds
its shards.
"""

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.streaming.arrays import Arrays, Ints
from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather.buffers import Buffers
from pipelines.streaming.gather.fields import Field, Samples
from pipelines.streaming.meter import Meter
from storage.errors import ShardlineError
from storage.shards import Shard

MAX_OPEN = 16_384  # shards; Linux allows a process 65,530 mappings
DEFAULT_MEMORY = 4 << 30  # bytes


@dataclass(frozen=True)
class Block:
    """Samples whose shards are open, and where each field finds them.

    `error` is why the sample after them cannot be had.
    """

    samples: Samples
    places: tuple[Any, ...]
    error: ShardlineError | None = None


class Gatherer:
    """Takes samples out of the shards of `fetcher`'s table (a split of a manifest), `samples[i]` of them in shard i.

    Shards are opened when first needed and kept open: files mapped in place, others in memory, up to `memory` bytes
    with those that blocks hold (more only where a single batch needs more).
    Arrays come out of `buffers`. Threads may share it; it can be pickled and survives a fork.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        samples: Ints,
        fields: tuple[Field, ...],
        buffers: Buffers | None = None,
        meter: Meter | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.memory = memory
        self.fetcher, self.samples, self.fields = fetcher, samples, fields
        self.buffers, self.meter = buffers or Buffers(), meter or Meter()
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        shards = len(self.fetcher)
        self._shards: dict[int, Shard] = {}
        self._in_memory: dict[int, int] = {}  # bytes of open shards that aren't mapped files
        self._tick = 0
        self._used = np.zeros(shards, dtype=np.int64)  # tick of the last use, 0 where closed
        self._facts = [np.zeros((field.facts, shards), dtype=np.int64) for field in self.fields]

    def close(self) -> None:
        """Let go of every shard and of idle buffers. They are opened again when needed."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            self._forget()
        self.buffers.clear()
        for field in self.fields:
            field.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Gatherer, (self.fetcher, self.samples, self.fields, self.buffers, self.meter, self.memory)

    # -- places ----------------------------------------------------------------------------------------------------

    def locate(self, shard: Ints, row: Ints, least: int | None = None) -> Block:
        """The samples at (shard, row), int64 [n] each, with their shards open. Where one cannot be opened, the samples
        before the first that needs it, and why. With `least`, so many and as many more as a quarter of the memory
        holds and no shard on its way is needed for."""
        least = len(shard) if least is None else least
        if self._process != os.getpid():  # forked: another thread of the parent may have held the lock
            self._reset()
        with self._lock:
            end, error = self._open_all(shard, least)
            shard, row = shard[:end], row[:end]
            few = len(self._used) < 4 * len(shard)
            used = np.flatnonzero(self._used == self._tick) if few else np.unique(shard)
            samples = Samples(shard, row, {index: self._shards[index] for index in used.tolist()})
            places = tuple(field.locate(samples, facts) for field, facts in zip(self.fields, self._facts, strict=True))
            self._evict()
        return Block(samples, places, error)

    def lengths(self, shard: Ints, row: Ints) -> Ints:
        """Of the samples at (shard, row), int64 [n] each, summed over fields of variable width: int64 [n].

        Shard by shard in the order of need, so that each is opened once however little memory there is. Raises the
        ShardlineError of one that cannot be opened.
        """
        _, first, which = np.unique(shard, return_index=True, return_inverse=True)
        rest = np.argsort(first[which], kind="stable")
        lengths = np.zeros(len(shard), dtype=np.int64)
        while len(rest):
            block = self.locate(shard[rest], row[rest], least=1)
            done, rest = np.split(rest, [len(block.samples.row)])
            for field, place in zip(self.fields, block.places, strict=True):
                if field.varies:
                    lengths[done] += field.lengths(place)
            if block.error is not None:
                raise block.error
        return lengths

    @property
    def varies(self) -> bool:
        """Whether samples differ in length."""
        return any(field.varies for field in self.fields)

    @property
    def by_batch(self) -> bool:
        """Whether batches must be gathered one by one."""
        return any(field.by_batch for field in self.fields)

    @property
    def serial(self) -> bool:
        """Whether one thread at a time may gather."""
        return any(field.serial for field in self.fields)

    def is_open(self, index: int) -> bool:
        return bool(self._used[index])

    def _open_all(self, shard: Ints, least: int) -> tuple[int, ShardlineError | None]:
        """Open what `shard` names, in the order of need; returns how many samples can be had, and why not more."""
        self._tick += 1
        needed = self._used[shard] > 0
        self._used[shard[needed]] = self._tick
        if needed.all() and not self._in_memory:
            return len(shard), None
        held, (indices, first) = 0, np.unique(shard, return_index=True)
        for place in np.argsort(first).tolist():
            index, begin = int(indices[place]), int(first[place])
            if begin >= least and not self._used[index] and not self.fetcher.is_here(index):
                return begin, None
            try:
                if not self._used[index]:
                    with self.meter.time("fetch"):
                        self._open(index)
            except ShardlineError as error:
                return begin, error
            held += self._in_memory.get(index, 0)
            if held > self.memory // 4 and begin >= least:
                return begin, None
        return len(shard), None

    def _open(self, index: int) -> None:
        buffer, in_memory = self.fetcher.open(index)
        shard = Shard.open(buffer, self.fetcher.describe(index))
        for field, facts in zip(self.fields, self._facts, strict=True):
            facts[:, index] = field.inspect(shard, int(self.samples[index]))
        self._shards[index] = shard
        self._used[index] = self._tick
        if in_memory:
            self._in_memory[index] = buffer.size

    def _evict(self) -> None:
        """Close the shards that were used the longest ago, down to the limits; never those in use now.

        Half of the memory is for the shards that are open, a quarter for each of two blocks that hold others besides.
        Each of the three may have one shard too many, or those of one batch.
        """
        many, much = len(self._shards) > MAX_OPEN, sum(self._in_memory.values()) > self.memory // 2
        if not many and not much:
            return
        for index in sorted(self._shards, key=self._used.__getitem__):
            if self._used[index] < self._tick and (many or index in self._in_memory):
                del self._shards[index]
                self._in_memory.pop(index, None)
                self._used[index] = 0
                many, much = len(self._shards) > MAX_OPEN, sum(self._in_memory.values()) > self.memory // 2
                if not many and not much:
                    return

    # -- copies ----------------------------------------------------------------------------------------------------

    def gather(self, block: Block, part: slice) -> Arrays:
        """Part of a block's samples as arrays of their own."""
        arrays: Arrays = {}
        with self.meter.time("gather"):
            for field, place in zip(self.fields, block.places, strict=True):
                arrays |= field.gather(block.samples, place, part, self.buffers, self.meter)
        return arrays

    def reserve(self, count: int, times: int) -> None:
        """Get buffers for `times` gathers of `count` samples, so that they lie apart from the shards opened later:
        copies between memory that lies interleaved are slower (see `rows`)."""
        held = [field.reserve(count, self.buffers) for field in self.fields for _ in range(times)]
        held.clear()

    def take(self, shard: Ints, row: Ints) -> Arrays:
        """The samples at (shard, row), int64 [n] each, as arrays of their own in that order."""
        block = self.locate(shard, row)
        if block.error is not None:
            raise block.error
        return self.gather(block, slice(0, len(shard)))

    def part(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        """Samples `start` to `stop` of what was gathered, as views of it."""
        return {name: values[start:stop] for name, values in arrays.items()}

    def padded(self, arrays: Arrays, count: int, share: int) -> Arrays:
        """Arrays of `count` samples lengthened with zeros to `share`, and `mask`, bool [share], of the real ones."""
        if count < share:
            parts = [field.padded(arrays, share, self.buffers) for field in self.fields]
            arrays = {name: values for part in parts for name, values in part.items()}
        return {**arrays, "mask": np.arange(share) < count}

    def ids(self, shard: Ints, row: Ints) -> list[str]:
        """The names of the samples at (shard, row): of a token sequence, the document it begins in and the offset."""
        block = self.locate(shard, row)
        if block.error is not None:
            raise block.error
        shards = block.samples.shards
        return [self.fields[0].id(shards[i], place) for i, place in zip(shard.tolist(), row.tolist(), strict=True)]
