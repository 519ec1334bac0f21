"""Several datasets mixed by weights that may change with the step: a pure function, like the order of one.

At each step the batch has a fixed number of samples of each dataset (`quotas.py`), laid over the slots so that every
rank gets its share of each. A dataset goes through epochs of its own, each sample once in each, as fast as its weight
asks for. All is reached from the step alone, so a state is as small as with one dataset, and any world size works.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.order import DEFAULT_WINDOW, ORDER_VERSION, Order, choose_lanes, slots
from pipelines.streaming.permutation import spread
from pipelines.streaming.quotas import Ints, Quotas
from pipelines.streaming.ramp import Epochs, Ramp
from storage.digest import keyed_uint64
from storage.errors import DataError, ParamsError

#: A weight, or step → weight.
Weight = float | Mapping[int, float]


class Mixture:
    """The order of samples of `datasets` (name → rows of its shards) in global batches of `batch`.

    `weights` is name → weight, or name → (step → weight): between those steps a weight changes linearly, before the
    first and after the last it stays. Weights need not sum to 1. An epoch of the mixture has `steps` steps (None: as
    many as all the rows fill once), so that step s of epoch e is the global step e · steps + s. All batches are full.
    `batch` may be a ramp, by global steps.

    `window`, `first_window`, `keep_lanes` and `shuffle` are those of `Order`; so are `lanes`, where a dataset that
    gives fewer samples to a batch has fewer. Costs some 150 ns a sample when planned in blocks.
    """

    def __init__(
        self,
        datasets: Mapping[str, npt.ArrayLike],
        weights: Mapping[str, Weight],
        *,
        batch: int | Ramp,
        seed: int,
        lanes: int | None = None,
        window: int = DEFAULT_WINDOW,
        first_window: int | None = None,
        keep_lanes: bool = False,
        shuffle: bool = True,
        steps: int | None = None,
    ) -> None:
        self.ramp = batch if isinstance(batch, Ramp) else Ramp({0: batch})
        if steps is not None and steps < 1:
            raise ParamsError(f"steps={steps} of an epoch of a mixture: must be at least 1.")
        self.names = list(datasets)
        self.schedule = _schedule(self.names, weights)
        self.batch_size, self.seed = self.ramp.largest, seed
        self.orders = [
            Order(
                rows,
                batch=lanes or choose_lanes(self.ramp.smallest, int(np.sum(rows)), window),
                lanes=lanes,
                seed=keyed_uint64("mixture", ORDER_VERSION, seed, name),
                window=window,
                first_window=first_window,
                keep_lanes=keep_lanes,
                shuffle=shuffle,
            )
            for name, rows in datasets.items()
        ]
        for name, order in zip(self.names, self.orders, strict=True):
            if not order.rows:
                raise DataError(f"Dataset {name!r} of the mixture has no samples: leave it out.")
        self.rows = sum(order.rows for order in self.orders)
        self.epochs = Epochs(self.ramp, self.rows, "wrap", steps)
        self._quotas = Quotas(self.schedule, self.ramp)

    @property
    def steps(self) -> int:
        """Of the first epoch, and of all where the batch doesn't grow."""
        return self.epochs.steps(0)

    def settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data, as JSON values by the names that people know."""
        return {
            "order version": ORDER_VERSION,
            "seed": self.seed,
            "stream.batch_size": self.batch_size,
            "stream.mixture": {
                name: {str(step): float(weights[place]) for step, weights in self.schedule.items()}
                for place, name in enumerate(self.names)
            },
            **self.ramp.settings(),
            "steps of an epoch": self.steps,
            **{f"{name}: {key}": order.settings()[key] for name, order in self._named() for key in _OF_DATASET},
        }

    def shares(self, step: int) -> dict[str, float]:
        """Of each dataset, in the batch at global step `step`, by the weights there."""
        return dict(zip(self.names, self._quotas.shares(step).tolist(), strict=True))

    def passes(self, steps: int) -> dict[str, float]:
        """How often each dataset has been gone through after so many global steps."""
        given = self._quotas.given(steps)[0].tolist()
        return {name: count / order.rows for count, (name, order) in zip(given, self._named(), strict=True)}

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        """The part of a global batch of the last size that `rank` of `world` owns, as in an `Order`."""
        slots(self.ramp.smallest, rank, world)  # raises where some would never get a sample
        return slots(self.batch_size, rank, world, size)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints, Ints]:
        """The batch at `step` as (dataset, shard, row), int64 [n]."""
        return self.block(epoch, step, 1, rank, world)

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints, Ints]:
        """The rank's parts of batches `step` … `step + count - 1` end to end, as (dataset, shard, row), int64 [n];
        all of one size."""
        if not 0 <= step < self.epochs.steps(epoch) or not 1 <= count <= self.epochs.alike(epoch, step):
            raise IndexError(
                f"steps {step} to {step + count - 1} of an epoch of {self.epochs.steps(epoch)} steps of one size"
            )
        first, size = self.epochs.start(epoch) + step, self.epochs.full(epoch, step)
        given = self._quotas.given(np.arange(first, first + count + 1))
        dataset, number = self._lay(first, given, size, slots(size, rank, world))
        shard, row = np.empty_like(number), np.empty_like(number)
        for index, order in enumerate(self.orders):
            places = np.flatnonzero(dataset == index)
            turns, inside = np.divmod(number[places], order.rows)
            for turn in range(int(turns.min(initial=0)), int(turns.max(initial=-1)) + 1):
                chosen = turns == turn
                shard[places[chosen]], row[places[chosen]] = order.samples(turn, inside[chosen])
        return dataset, shard, row

    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, int, Ints]]:
        """(step from which they are needed, dataset, shards) to the end of `epoch`, in the order of that step.

        Every rank reads from all lanes of a dataset, so the shards are the same for all ranks. A shard comes again with
        each epoch of its dataset.
        """
        self.slots(rank, world)
        start = self.epochs.start(epoch)
        first, end = start + step, start + self.epochs.steps(epoch)
        parts = [self._needs_of(index, first, end) for index in range(len(self.orders))]
        for at, index, shards in heapq.merge(*parts, key=lambda need: need[:2]):
            yield at - start, index, shards

    def ahead(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        """(dataset, shards) that `rank` reads from `step` to the end of `epoch`, in the order of first need."""
        for _, index, shards in self.needs(epoch, step, rank, world):
            yield index, shards

    def _needs_of(self, index: int, first: int, end: int) -> Iterator[tuple[int, int, Ints]]:
        """As `needs` of one dataset, in global steps from `first` until before `end`."""
        order = self.orders[index]
        given, last = (int(count) for count in self._quotas.given([first, end])[:, index])
        while given < last:
            turn, inside = divmod(given, order.rows)
            for start, shards in order.needs(turn, inside // order.batch_size):
                number = max(given, turn * order.rows + start * order.batch_size)
                if number >= last:
                    return
                yield self._step_of(index, number, first, end), index, shards
            given = (turn + 1) * order.rows

    def _step_of(self, index: int, number: int, low: int, high: int) -> int:
        """The global step in [low, high) whose batch has sample `number` of a dataset."""
        while high - low > 1:
            middle = (low + high) // 2
            if self._quotas.given([middle])[0, index] <= number:
                low = middle
            else:
                high = middle
        return low

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

    def _named(self) -> Iterator[tuple[str, Order]]:
        return zip(self.names, self.orders, strict=True)


#: What a dataset of a mixture chooses for itself.
_OF_DATASET = ("stream.lanes", "stream.window", "stream.keep_lanes", "first window", "shuffle")


@lru_cache(maxsize=1024)
def _layout(counts: tuple[int, ...]) -> tuple[Ints, Ints]:
    """(dataset, number) of each slot of a batch that has counts[d] samples of dataset d, each int64 [batch].

    Those of a dataset lie at even distances, so that any stretch of slots has about its share of each.
    """
    dataset = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    slots = np.argsort((2 * number + 1) / np.array(counts)[dataset], kind="stable")
    return dataset[slots], number[slots]


def _schedule(names: Sequence[str], weights: Mapping[str, Weight]) -> dict[int, list[Fraction]]:
    """step → weights in the order of `names`, from step 0 on, at each step where a weight bends."""
    if not names or set(names) != set(weights):
        raise ParamsError(
            f"stream.mixture: weights for {', '.join(sorted(weights)) or 'nothing'}, "
            f"but the datasets are {', '.join(sorted(names)) or 'none'}."
        )
    bends = {name: _bends(name, weights[name]) for name in names}
    steps = sorted({0}.union(*bends.values()))
    schedule = {step: [_at(bends[name], step) for name in names] for step in steps}
    for step, values in schedule.items():
        if not any(values):
            raise ParamsError(f"stream.mixture: all weights are 0 at step {step}.")
    return schedule


def _bends(name: str, weight: Weight) -> dict[int, Fraction]:
    """step → weight, checked."""
    bends = dict(weight) if isinstance(weight, Mapping) else {0: weight}
    if not bends or not all(isfinite(value) and value >= 0 for value in bends.values()) or not any(bends.values()):
        raise ParamsError(f"stream.mixture.{name}.weight={weight}: must be finite, not negative, and not always 0.")
    if min(bends) < 0:
        raise ParamsError(f"stream.mixture.{name}.weight={weight}: steps start at 0.")
    return {step: Fraction(value) for step, value in sorted(bends.items())}


def _at(bends: dict[int, Fraction], step: int) -> Fraction:
    """The weight at `step`."""
    before = max((bend for bend in bends if bend <= step), default=min(bends))
    after = min((bend for bend in bends if bend >= step), default=max(bends))
    way = Fraction(step - before, after - before) if after > before else Fraction(0)
    return bends[before] + (bends[after] - bends[before]) * way
