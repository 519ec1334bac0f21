"""The order of one dataset: global batches that take as much from each lane."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.batch_ramp import Ramp
from pipelines.streaming.order.batches import Batches, slots
from pipelines.streaming.order.epochs import Epochs, Rest
from pipelines.streaming.order.lanes import Lanes, Ordering, unseen
from pipelines.streaming.order.layout import ORDER_VERSION


class Order(Batches):
    """The order of the rows of `shard_rows` (int64 [S], each ≥ 0) in global batches of `batch` samples.

    `batch` may be a ramp, by global steps: then lanes, windows and shards are those of its smallest size, of which each
    lane gives its share of every batch. Every row comes exactly once an epoch; the last batch of an epoch is short when
    they don't fill it, or left out (`rest`: "drop"). Costs some 40 ns a sample when planned in blocks, and some
    tens of milliseconds a million shards once an epoch (benchmark `resume`).
    """

    def __init__(
        self,
        shard_rows: npt.ArrayLike,
        *,
        batch: int | Ramp,
        seed: int,
        ordering: Ordering = Ordering(),
        rest: Rest = "keep",
    ) -> None:
        ramp = Ramp.of(batch)
        self._lanes = own = Lanes(shard_rows, batch=ramp.smallest, seed=seed, ordering=ordering)
        super().__init__(Epochs(ramp, own.rows, rest))
        self.seed, self.shard_rows, self.lanes, self.shuffle = seed, own.shard_rows, own.count, own.shuffle
        self.window, self.first_window, self.keep_lanes = own.window, own.first_window, own.keep_lanes

    def settings(self) -> dict[str, Any]:
        seed_and_size = {"order version": ORDER_VERSION, "seed": self.seed, "stream.batch_size": self.batch_size}
        return {**seed_and_size, **self._lanes.settings(), **self.epochs.ramp.settings()}

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        epochs = self.epochs
        epochs.check(epoch, step, count)
        size, last = epochs.full(epoch, step), epochs.size(epoch, step + count - 1)
        full, each, first = count - (last < size), size // self.lanes, epochs.given(epoch, step) // self.lanes
        parts = []
        if full:
            lane, offset = np.divmod(_range(slots(size, rank, world)), each)
            positions = np.arange(first, first + full * each, each)[:, None] + offset
            parts.append((np.broadcast_to(lane, positions.shape).reshape(-1), positions.reshape(-1)))
        if full < count:
            parts.append(self._lanes.rest(first + full * each, _range(slots(size, rank, world, last))))
        if len(parts) == 1:
            return self._lanes.locate(epoch, *parts[0])
        lanes, places = zip(*parts, strict=True)
        return self._lanes.locate(epoch, np.concatenate(lanes), np.concatenate(places))

    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        epochs, last = self.epochs, self.epochs.steps(epoch) - 1
        if step > last:
            return
        own, each = self._stripes(epochs.full(epoch, last), rank, world)
        seen, full = np.zeros(len(self.shard_rows), dtype=np.bool_), epochs.full_steps(epoch)
        first, end = (epochs.given(epoch, at) // self.lanes for at in (step, full))
        for at, shards in self._lanes.span(epoch, np.unique(own // each), first, end, seen):
            yield epochs.step(epoch, at * self.lanes), shards
        if full == last:
            shards = unseen(self.block(epoch, last, 1, rank, world)[0], seen)
            if shards.size:
                yield last, shards

    def groups(self, slot: Ints, shard: Ints) -> Ints:
        """The lanes."""
        return slot // (self.batch_size // self.lanes)

    def reads(self, epoch: int, rank: int = 0, world: int = 1) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The shards that `rank` reads in `epoch`, int64 [n], and how many rows of each on average, float64 [n].

        From the bounds of lanes alone, so the short batch of an epoch counts as spread over the rank's lanes.
        """
        own, each = self._stripes(self.batch_size, rank, world)
        return self._lanes.reads(epoch, np.bincount(own // each, minlength=self.lanes) / each)

    def _stripes(self, size: int, rank: int, world: int) -> tuple[Ints, int]:
        """The slots that `rank` owns of a batch of `size`, and how many of them are a lane's."""
        return _range(slots(size, rank, world)), size // self.lanes


def _range(part: slice) -> Ints:
    return np.arange(part.start, part.stop, dtype=np.int64)
