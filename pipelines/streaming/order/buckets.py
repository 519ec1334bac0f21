"""Batches of samples of like length, so that little of them is padding.

The batches of an epoch are taken in blocks. What a block holds is the order's; within it, each group's samples (a
lane's, or a dataset's of a mixture) are sorted by length and dealt out again, so that each batch gets neighbours. Which
batch gets the short ones is drawn by a key, so that lengths don't rise along a block. It is a pure function of (seed,
epoch, step) and the data, as the order is: each sample once, the same for any number of ranks, any step at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.batches import Batches
from pipelines.streaming.order.permutation import spread
from pipelines.streaming.order.windows import Windows
from storage.digest import keyed_uint64
from storage.errors import ParamsError

#: Raised whenever the same arguments would give other batches; saved stream states carry it.
BUCKETS_VERSION = 1

_LENGTH_BITS = 44  # lengths below 16 TiB
_GROWTH = 16  # the first block of an epoch is a 16th of a full one: a first batch needs few shards

#: (shard, row), int64 [n] each → the lengths of the samples there, int64 [n].
Lengths = Callable[[Ints, Ints], Ints]


@dataclass(frozen=True)
class _Block:
    """Batches `start` … of an epoch in the slots from `slot` on: (shard, row), int64 [batches, slots] each."""

    key: tuple[int, ...]
    start: int
    slot: int
    shard: Ints
    row: Ints


class Bucketed(Batches):
    """`order` with the samples of `batches` consecutive batches sorted into them by `lengths`.

    A rank must know the lengths of all samples of its lanes in a block (of a mixture, of all samples), so the shards of
    a whole block are needed at its first step; none that the rank would not read from anyway. The blocks of an epoch
    start at `batches` / 16 and double up to `batches`; the last one takes up the rest, up to twice as many. The short
    last batch of an epoch is left as it is. Costs some 0.5 µs a sample of these lanes.
    """

    def __init__(self, order: Batches, batches: int, seed: int, lengths: Lengths) -> None:
        if order.epochs.ramp.grows:
            raise ParamsError(
                f"stream.bucket_batches={batches} sorts batches of one size, but stream.batch_ramp makes "
                "them grow: set stream.bucket_batches to 1, or leave stream.batch_ramp out."
            )
        super().__init__(order.epochs)
        self.order, self.batches, self.seed, self._lengths = order, batches, seed, lengths
        self.lanes = order.lanes
        self._full = order.full_steps
        self._blocks = Windows(max(1, batches // _GROWTH), batches, np.array([self._full], dtype=np.int64))
        self._latest: _Block | None = None

    def settings(self) -> dict[str, Any]:
        own = {"buckets version": BUCKETS_VERSION, "stream.bucket_batches": self.batches}
        return {**self.order.settings(), **own}

    def groups(self, slot: Ints, shard: Ints) -> Ints:
        return self.order.groups(slot, shard)

    def bounds(self, step: int) -> tuple[int, int]:
        """The first step of the block that `step` is in, and the one after its last."""
        return self._blocks.find(step)[1:] if step < self._full else (self._full, self.steps)

    def reach(self, epoch: int, step: int) -> int:
        """To the end of the block: the shards of the next one need not be open before."""
        return self.bounds(step)[1] - step

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """As ever. Raises the ShardlineError of a shard that cannot be opened, for all of a block's steps."""
        self.epochs.check(epoch, step, count)
        parts, end = [], step + count
        while step < end:
            start, stop = self.bounds(step)
            stop = min(stop, end)
            if step == self._full:
                parts.append(self.order.block(epoch, step, 1, rank, world))
            else:
                block, own = self._block(epoch, start, rank, world), self.slots(rank, world)
                part = slice(step - start, stop - start), slice(own.start - block.slot, own.stop - block.slot)
                parts.append((block.shard[part].reshape(-1), block.row[part].reshape(-1)))
            step = stop
        shards, rows = zip(*parts, strict=True)
        return (shards[0], rows[0]) if len(parts) == 1 else (np.concatenate(shards), np.concatenate(rows))

    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        """In the open block, also shards of which only the lengths are still needed."""
        first = self.bounds(step)[0] if step < self._full else step
        for at, shards in self.order.needs(epoch, first, rank, world):
            yield self.bounds(at)[0], shards

    def _block(self, epoch: int, start: int, rank: int, world: int) -> _Block:
        """The block that begins at step `start`, as far as this rank needs to know it."""
        own, each = self.slots(rank, world), self.batch_size // self.lanes
        first, last = own.start // each, (own.stop - 1) // each
        key, latest = (epoch, start, first, last), self._latest  # read once: another thread may replace it
        if latest is None or latest.key != key:
            latest = self._latest = self._deal(key, each)
        return latest

    def _deal(self, key: tuple[int, ...], each: int) -> _Block:
        epoch, start, first, last = key
        count = self.bounds(start)[1] - start
        lanes = last + 1 - first
        # as many lanes at once as are some rank's of some world
        together = lanes if first % lanes == 0 and self.lanes % lanes == 0 else 1
        asked = range(first // together, (last + 1) // together)
        parts = [self.order.block(epoch, start, count, part, self.lanes // together) for part in asked]
        shard, row = (np.stack([p[i].reshape(count, -1) for p in parts], axis=1).reshape(-1) for i in (0, 1))
        step = np.repeat(np.arange(count), lanes * each)
        slot = np.tile(np.arange(first * each, (last + 1) * each), count)  # in the global batch
        key_of_block = keyed_uint64("buckets", BUCKETS_VERSION, self.seed, epoch, start)
        lengths, group = self._lengths(shard, row), self.groups(slot, shard)
        source = dealt(lengths, group, step, step * self.batch_size + slot, key_of_block)
        shape = (count, -1)
        return _Block(key, start, first * each, shard[source].reshape(shape), row[source].reshape(shape))


def dealt(lengths: Ints, group: Ints, step: Ints, number: Ints, key: int) -> Ints:
    """Which sample each place of a block gets, int64 [n], where it had its own: `lengths`, `group`, `step`, and the
    `number` of the place in the block, [n] each.

    Each group's samples, sorted by length, fill the group's places step by step, the steps in an order drawn by `key`.
    So a step keeps as many samples of each group as it had. Those of a group in a step get its places in a drawn order,
    so that of the ranks that share them none always gets the longest.
    """
    steps = int(step.max()) + 1
    turns = np.argsort(np.argsort(spread(np.arange(steps, dtype=np.uint64), np.uint64(key)), kind="stable"))
    mixed = spread((steps + number).view(np.uint64), np.uint64(key)) >> np.uint64(32)
    # Packed into one word each, which sorts twice as fast as several keys.
    places = np.argsort((group * steps + turns[step]) << 32 | mixed.view(np.int64), kind="stable")
    samples = np.argsort(group << _LENGTH_BITS | lengths, kind="stable")
    source = np.empty_like(places)
    source[places] = samples
    return source
