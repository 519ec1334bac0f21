"""Several datasets mixed by weights that may change with the step: a pure function, like the order of one.

At each step the batch has a fixed number of samples of each dataset (`quotas.py`), laid over the slots so that every
rank gets its share of each. A dataset goes through epochs of its own, each sample once in each, as fast as its weight
asks for. All is reached from the step alone, so a state is as small as with one dataset, and any world size works.
"""

import heapq
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.batch_ramp import Ramp
from pipelines.streaming.order.batches import Batches, slots
from pipelines.streaming.order.epochs import Epochs
from pipelines.streaming.order.lanes import Lanes, Ordering, choose_lanes
from pipelines.streaming.order.layout import ORDER_VERSION
from pipelines.streaming.order.mixing.quotas import Quotas
from pipelines.streaming.order.mixing.weights import Weight, schedule
from pipelines.streaming.order.permutation import spread
from storage.digest import keyed_uint64
from storage.errors import DataError, ParamsError


class Mixture(Batches):
    """The order of samples of `datasets` (name → rows of its shards) in global batches of `batch`, where the shards of
    all datasets are numbered through.

    `weights` is name → weight, or name → (step → weight): between those steps a weight changes linearly, before the
    first and after the last it stays. Weights need not sum to 1. An epoch of the mixture has `steps` steps (None: as
    many as all the rows fill once), so that step s of epoch e is the global step e · steps + s. All batches are full.
    `batch` may be a ramp, by global steps.

    `ordering` is that of each dataset. Costs some 150 ns a sample when planned in blocks.
    """

    def __init__(
        self,
        datasets: Mapping[str, npt.ArrayLike],
        weights: Mapping[str, Weight],
        *,
        batch: int | Ramp,
        seed: int,
        ordering: Ordering = Ordering(),
        steps: int | None = None,
    ) -> None:
        ramp = Ramp.of(batch)
        if steps is not None and steps < 1:
            raise ParamsError(f"steps={steps} of an epoch of a mixture: must be at least 1.")
        self.seed, self.names = seed, list(datasets)
        self.schedule = schedule(self.names, weights)
        self.parts = [
            Lanes(
                rows,
                batch=ordering.lanes or choose_lanes(ramp.smallest, int(np.sum(rows)), ordering.window),
                seed=keyed_uint64("mixture", ORDER_VERSION, seed, name),
                ordering=ordering,
            )
            for name, rows in datasets.items()
        ]
        for name, part in zip(self.names, self.parts, strict=True):
            if not part.rows:
                raise DataError(f"Dataset {name!r} of the mixture has no samples: leave it out.")
        super().__init__(Epochs(ramp, sum(part.rows for part in self.parts), "wrap", steps))
        self.firsts = np.cumsum([0, *(len(part.shard_rows) for part in self.parts[:-1])])  # shard of each dataset
        self._quotas = Quotas(self.schedule, ramp)

    def settings(self) -> dict[str, Any]:
        bends = self.schedule.items()
        return {
            "order version": ORDER_VERSION,
            "seed": self.seed,
            "stream.batch_size": self.batch_size,
            "stream.mixture": {
                name: {str(step): float(weights[place]) for step, weights in bends}
                for place, name in enumerate(self.names)
            },
            **self.epochs.ramp.settings(),
            "steps of an epoch": self.steps,
            **{f"{name}: {key}": value for name, part in self._named() for key, value in part.settings().items()},
        }

    def shares(self, step: int) -> dict[str, float]:
        """Of each dataset, in the batch at global step `step`, by the weights there."""
        return dict(zip(self.names, self._quotas.shares(step).tolist(), strict=True))

    def passes(self, steps: int) -> dict[str, float]:
        """How often each dataset has been gone through after so many global steps."""
        given = self._quotas.given(steps)[0].tolist()
        return {name: count / part.rows for count, (name, part) in zip(given, self._named(), strict=True)}

    def datasets_of(self, shard: Ints) -> Ints:
        """Which dataset each shard is of, by number, int64 [n]."""
        return np.searchsorted(self.firsts, shard, side="right") - 1

    def groups(self, slot: Ints, shard: Ints) -> Ints:
        """The datasets."""
        return self.datasets_of(shard)

    def _named(self) -> Iterator[tuple[str, Lanes]]:
        return zip(self.names, self.parts, strict=True)

    # -- batches -------------------------------------------------------------------------------------------------

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        self.epochs.check(epoch, step, count)
        first, size = self.epochs.start(epoch) + step, self.epochs.full(epoch, step)
        given = self._quotas.given(np.arange(first, first + count + 1))
        dataset, number = self._lay(first, given, size, slots(size, rank, world))
        shard, row = np.empty_like(number), np.empty_like(number)
        for index, part in enumerate(self.parts):
            places = np.flatnonzero(dataset == index)
            turns, inside = np.divmod(number[places], part.rows)
            for turn in range(int(turns.min(initial=0)), int(turns.max(initial=-1)) + 1):
                chosen = turns == turn
                found, row[places[chosen]] = part.samples(turn, inside[chosen])
                shard[places[chosen]] = found + self.firsts[index]
        return shard, row

    def _lay(self, first: int, given: Ints, size: int, own: slice) -> tuple[Ints, Ints]:
        """(dataset, number of the sample in it) in the slots `own` of the batches of `size` from global step `first`
        on."""
        mixes, mix = np.unique(np.diff(given, axis=0), axis=0, return_inverse=True)
        layouts = [_layout(tuple(counts)) for counts in mixes.tolist()]
        datasets, numbers = (np.stack(arrays) for arrays in zip(*layouts, strict=True))
        # Turned by another amount each step, so that no rank always has what is left over.
        steps = np.arange(first, first + len(given) - 1, dtype=np.uint64)
        turns = spread(steps, np.uint64(keyed_uint64("mixture", ORDER_VERSION, self.seed))) % np.uint64(size)
        slot = np.arange(own.start, own.stop) + turns.astype(np.int64)[:, None]
        np.subtract(slot, size, out=slot, where=slot >= size)
        mix = mix.reshape(-1, 1)
        dataset = datasets[mix, slot]
        number = numbers[mix, slot] + np.take_along_axis(given[:-1], dataset, axis=1)
        return dataset.reshape(-1), number.reshape(-1)

    # -- what lies ahead -----------------------------------------------------------------------------------------

    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        """Every rank reads from all lanes of a dataset, so the shards are the same for all ranks. A shard comes again
        with each epoch of its dataset."""
        self.slots(rank, world)  # raises where some would never get a sample
        start = self.epochs.start(epoch)
        first, end = start + step, start + self.epochs.steps(epoch)
        parts = [self._needs_of(index, first, end) for index in range(len(self.parts))]
        for at, index, shards in heapq.merge(*parts, key=lambda need: need[:2]):
            yield at - start, shards + self.firsts[index]

    def _needs_of(self, index: int, first: int, end: int) -> Iterator[tuple[int, int, Ints]]:
        """(global step, dataset, shards of it) of one dataset, from step `first` until before `end`."""
        part, step = self.parts[index], first
        given, last = self._quotas.given([first, end])[:, index].tolist()
        while given < last:
            turn, inside = divmod(given, part.rows)
            for at, shards in part.needs(turn, inside):
                number = max(given, turn * part.rows + at)
                if number >= last:
                    return
                step = self._step_of(index, number, step, end)
                yield step, index, shards
            given = (turn + 1) * part.rows

    def _step_of(self, index: int, number: int, low: int, high: int) -> int:
        """The global step in [low, high) whose batch has sample `number` of a dataset; sooner found near `low`."""
        ahead = 1
        while low + ahead < high and self._quotas.given([low + ahead])[0, index] <= number:
            low, ahead = low + ahead, 2 * ahead
        high = min(high, low + ahead)
        while high - low > 1:
            middle = (low + high) // 2
            if self._quotas.given([middle])[0, index] <= number:
                low = middle
            else:
                high = middle
        return low


@lru_cache(maxsize=1024)
def _layout(counts: tuple[int, ...]) -> tuple[Ints, Ints]:
    """(dataset, number) of each slot of a batch that has counts[d] samples of dataset d, each int64 [batch].

    Those of a dataset lie at even distances, so that any stretch of slots has about its share of each.
    """
    dataset = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    slots = np.argsort((2 * number + 1) / np.array(counts)[dataset], kind="stable")
    return dataset[slots], number[slots]
