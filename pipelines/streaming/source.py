"""Batches of any place in the order: planned in blocks, gathered a few at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.runtime.cores import cores
from pipelines.streaming.arrays import Arrays, Ints
from pipelines.streaming.gather.gatherer import Block, Gatherer
from pipelines.streaming.order import Batches
from pipelines.streaming.prefetch import Prefetcher, close_items

_PLANNED = 16_384  # samples planned at once
_HANDED_OVER = 8 << 20  # bytes of batches that are gathered at a time, and handed over: threads take turns at a cost
_SMALL = 1 << 10  # bytes of samples that take about as long to plan as to copy
_RESERVED = 6  # times _HANDED_OVER that are alive at once: made, handed over, in use

Plan = tuple[int, int, int, Block]  # epoch, first step, number of batches, and their samples


@dataclass(frozen=True)
class Group:
    """Batches `step` … `step + count - 1` of `epoch`, which are those from `first` on of `block`."""

    epoch: int
    step: int
    count: int
    block: Block
    first: int = 0


class Batch(Arrays):
    """This rank's part of a global batch: arrays [n, …] by name, `count` samples of the `size` in the global batch, and
    its place.

    Arrays are this batch's own for as long as anything refers to them, and speak DLPack. With `last="pad"` there is
    also `mask`, bool [n].
    """

    def __init__(self, arrays: Arrays, epoch: int, step: int, size: int, origin: tuple[Gatherer, Ints, Ints]) -> None:
        super().__init__(arrays)
        self.epoch, self.step, self.size, self.count = epoch, step, size, len(origin[1])
        self._origin: tuple[Gatherer, Ints, Ints] | list[str] = origin

    @property
    def arrays(self) -> Arrays:
        return self

    def ids(self) -> list[str]:
        """The names of the samples, without those that only pad."""
        if isinstance(self._origin, tuple):
            gatherer, shard, row = self._origin
            return gatherer.ids(shard, row)
        return self._origin

    def __copy__(self) -> "Batch":
        batch = Batch.__new__(Batch)
        batch.update(self)
        batch.__dict__.update(self.__dict__)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with the names of its samples instead of what could look them up."""
        return {**self.__dict__, "_origin": self.ids()}


class Source:
    """Makes batches of any place in `order`, this rank's parts of them; with `pad` as long as those of a full batch. It
    doesn't know the stream, so that the threads keep none alive."""

    def __init__(self, order: Batches, gatherer: Gatherer, rank: int, world: int, pad: bool) -> None:
        self.order, self.gatherer, self.rank, self.world, self.pad = order, gatherer, rank, world, pad
        self.epochs = order.epochs
        own = order.slots(rank, world)
        self.share: int = own.stop - own.start  #: samples of a full batch that are this rank's; of a ramp's largest one
        sample = sum(field.nbytes for field in gatherer.fields)
        nbytes = self.share * sample
        self._small = sample < _SMALL
        whole = max(1, _HANDED_OVER // max(1, nbytes))
        self._together = max(1, whole // self.makers)
        self.parts: int = whole // self._together  #: groups of what one thread would make as one
        self._planned = max(1, _PLANNED // self.share // self._together) * self._together

    def _share(self, epoch: int, step: int) -> int:
        """Samples of a full batch there that are this rank's."""
        if not self.epochs.ramp.grows:
            return self.share
        return self.order.share(epoch, step, self.rank, self.world)

    def groups(self, epoch: int, step: int, epochs: int | None, ahead: bool) -> Iterator[Group]:
        """All batches from (epoch, step) on, a few at a time, to `load`; with `ahead`, their shards are fetched before,
        from now on.

        They are planned in a thread where that waits for shards from afar, or is much of the work.
        """
        fetcher = self.gatherer.fetcher
        self.gatherer.reserve(self.share * self._together, _RESERVED * self.parts)
        plans, course = self._plans(epoch, step, epochs), None
        if ahead:
            course = fetcher.start(self._shards_ahead(epoch, step, epochs), self.gatherer.is_open)
        if course is not None or (ahead and self._small):
            plans = Prefetcher(plans, 1, interrupt=fetcher.interrupt, name="shardline-plan")
        return self._groups(plans, course)

    def _groups(self, plans: Iterator[Plan], course: object) -> Iterator[Group]:
        fetcher = self.gatherer.fetcher
        try:
            together = 1  # so that the first batch comes soon
            for at, first, count, block in plans:
                fetcher.reached(at)
                for start in range(0, count, together):
                    yield Group(at, first + start, min(together, count - start), block, start)
                together = self._together
        finally:
            close_items(plans)
            fetcher.stop(course)

    def _plans(self, epoch: int, step: int, epochs: int | None) -> Iterator[Plan]:
        """Blocks of batches with their shards open, each as far as the shards that are here, one batch at least. Raises
        what keeps a batch from being had, after those before it."""
        for at, first, planned, shard, row in self._order(epoch, step, epochs):
            done, share, reach = 0, self._share(at, first), planned
            while done < planned:
                some = slice(done * share, (done + reach) * share)
                block = self.gatherer.locate(shard[some], row[some], least=share)
                whole = len(block.samples.row) == len(row[some]) and block.error is None
                count = min(reach, planned - done) if whole else len(block.samples.row) // share
                if count:
                    yield at, first + done, count, block
                if block.error is not None:
                    raise block.error
                done += count
                reach = 2 * count  # so that looking at what cannot be had yet takes no more than what can

    def _order(self, epoch: int, step: int, epochs: int | None) -> Iterator[tuple[int, int, int, Ints, Ints]]:
        """(epoch, first step, number of batches, shard, row) of some batches at a time; of few at first."""
        planned = self._together
        while epochs is None or epoch < epochs:
            while step < self.epochs.steps(epoch):
                count = min(planned, self.order.reach(epoch, step))
                with self.gatherer.meter.time("plan"):
                    shard, row = self.order.block(epoch, step, count, self.rank, self.world)
                yield epoch, step, count, shard, row
                step, planned = step + count, self._planned
            epoch, step = epoch + 1, 0

    def _shards_ahead(self, epoch: int, step: int, epochs: int | None) -> Iterator[tuple[int, Ints]]:
        """(epoch, shards) in the order in which this rank needs them."""
        while epochs is None or epoch < epochs:
            for shards in self.order.ahead(epoch, step, self.rank, self.world):
                yield epoch, shards
            epoch, step = epoch + 1, 0

    @property
    def makers(self) -> int:
        """How many threads had better `load` at once, half as much each. Small samples have a thread that plans them
        instead."""
        return 1 if self.gatherer.serial or self._small or cores() < 2 else 2

    def load(self, group: Group) -> list[Batch]:
        """The group's batches."""
        epoch, step, count, block, first = group.epoch, group.step, group.count, group.block, group.first
        gatherer, share, samples = self.gatherer, self._share(epoch, step), block.samples
        part = slice(first * share, (first + count) * share)
        together = None if gatherer.by_batch else gatherer.gather(block, part)
        shard, row = samples.shard[part], samples.row[part]
        full, last = self.epochs.full(epoch, step), self.epochs.size(epoch, step + count - 1)
        batches = []
        for index in range(count):
            start, stop = index * share, min((index + 1) * share, len(row))
            if together is None:
                own = gatherer.gather(block, slice(part.start + start, part.start + stop))
            else:
                own = together if count == 1 else gatherer.part(together, start, stop)
            if self.pad:
                own = gatherer.padded(own, stop - start, share)
            origin = (gatherer, shard[start:stop], row[start:stop])
            batches.append(Batch(own, epoch, step + index, full if index < count - 1 else last, origin))
        return batches

    def batch(self, epoch: int, step: int) -> Batch:
        """One batch."""
        block = self.gatherer.locate(*self.order.batch(epoch, step, self.rank, self.world))
        if block.error is not None:
            raise block.error
        return self.load(Group(epoch, step, 1, block))[0]
