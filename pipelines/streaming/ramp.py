"""Global batches that grow with the step, and where epochs of them begin: arithmetic on the step alone."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from math import ceil, floor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.params import check_ramp
from pipelines.streaming.order import Ints, Order, slots, unseen
from storage.errors import ParamsError

#: What becomes of the samples after an epoch's last full batch: a short batch, nothing, or the next epoch's (mixtures).
Rest = Literal["keep", "drop", "wrap"]


class Ramp:
    """`sizes`: global step → samples of the global batch from there on. Raises ParamsError unless they begin at step 0,
    grow in multiples of the first, and end at `last`, where it is given."""

    def __init__(self, sizes: Mapping[int, int], last: int | None = None) -> None:
        self.starts, self.sizes = sorted(sizes), [int(sizes[step]) for step in sorted(sizes)]
        if self.sizes[0] < 1:
            raise ParamsError(f"stream.batch_size={self.sizes[0]}: must be at least 1.")
        try:
            check_ramp(dict(zip(self.starts, self.sizes, strict=True)), self.sizes[-1] if last is None else last)
        except ValueError as error:
            raise ParamsError(f"stream.{error}.") from None
        rises = np.diff(self.starts) * self.sizes[:-1]
        self._before: list[int] = [0, *np.cumsum(rises, dtype=np.int64).tolist()]

    @property
    def smallest(self) -> int:
        return self.sizes[0]

    @property
    def grows(self) -> bool:
        return len(self.sizes) > 1

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def size(self, step: int) -> int:
        """Samples of the batch at global step `step`."""
        return self.sizes[bisect_right(self.starts, step) - 1]

    def change(self, step: int) -> int | None:
        """The first step after `step` with another size."""
        place = bisect_right(self.starts, step)
        return self.starts[place] if place < len(self.starts) else None

    def before(self, step: npt.ArrayLike) -> Ints:
        """Samples of the full batches before each step, int64 of its shape."""
        steps = np.asarray(step, dtype=np.int64)
        if not self.grows:
            return np.multiply(steps, self.largest)
        place = np.searchsorted(self.starts, steps, side="right") - 1
        starts, sizes = np.array(self.starts, dtype=np.int64), np.array(self.sizes, dtype=np.int64)
        counts: Ints = np.array(self._before, dtype=np.int64)[place] + (steps - starts[place]) * sizes[place]
        return counts

    def steps(self, first: int, samples: int) -> tuple[int, int]:
        """How many full batches from step `first` on `samples` fill, and what is left over."""
        goal = int(self.before(first)) + samples
        place = bisect_right(self._before, goal) - 1
        whole, rest = divmod(goal - self._before[place], self.sizes[place])
        full = self.starts[place] + whole - first
        return full, rest

    def settings(self) -> dict[str, Any]:
        """What a state says of it: nothing where the batch doesn't grow."""
        sizes = {str(step): size for step, size in zip(self.starts, self.sizes, strict=True)}
        return {"stream.batch_ramp": sizes} if self.grows else {}


class Epochs:
    """Where epochs of `rows` samples begin and end. Costs a few divisions for each size of the ramp, once.

    While a size lasts, epochs that lie inside of it have the same number of steps; so it is enough to note where that
    number changes.
    """

    def __init__(self, ramp: Ramp, rows: int, rest: Rest = "keep", steps: int | None = None) -> None:
        """`steps`: of every epoch; None: as many as the rows fill."""
        self.ramp, self.rows, self.rest = ramp, rows, rest
        # Of each stretch of epochs that have the same number of steps: its first epoch and step, and that number.
        self._epochs: list[int] = []
        self._starts: list[int] = []
        self._steps: list[int] = []
        epoch = start = 0
        while True:
            count = steps or self._count(start)
            self._epochs.append(epoch)
            self._starts.append(start)
            self._steps.append(count)
            change = ramp.change(start)
            if change is None or not count or steps:
                break
            alike = max(1, (change - start) // count)
            epoch, start = epoch + alike, start + alike * count

    def _count(self, start: int) -> int:
        full, rest = self.ramp.steps(start, self.rows)
        return max(1, full) if self.rest == "wrap" else full + (self.rest == "keep" and rest > 0)

    @property
    def complete(self) -> bool:
        """Whether each epoch has a batch."""
        return min(self._steps) > 0

    def steps(self, epoch: int) -> int:
        """Batches of `epoch`."""
        return self._steps[bisect_right(self._epochs, epoch) - 1]

    def start(self, epoch: int) -> int:
        """The global step at which `epoch` begins."""
        place = bisect_right(self._epochs, epoch) - 1
        return self._starts[place] + (epoch - self._epochs[place]) * self._steps[place]

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, step in it) of a global step."""
        place = bisect_right(self._starts, step) - 1
        epochs, inside = divmod(step - self._starts[place], self._steps[place])
        return self._epochs[place] + epochs, inside

    def until(self, epochs: float) -> int:
        """Steps of so many epochs, rounded up."""
        if len(self._steps) == 1:
            return ceil(epochs * self._steps[0])
        whole = floor(epochs)
        return self.start(whole) + ceil((epochs - whole) * self.steps(whole))

    def full(self, epoch: int, step: int) -> int:
        """Samples that a full batch has there."""
        return self.ramp.size(self.start(epoch) + step) if self.ramp.grows else self.ramp.largest

    def size(self, epoch: int, step: int) -> int:
        """Samples of the batch there: fewer than a full one in the last step of an epoch, where the rest is kept."""
        full = self.full(epoch, step)
        if self.rest != "keep" or step + 1 < self.steps(epoch):
            return full
        return min(full, self.rows - self.given(epoch, step))

    def given(self, epoch: int, step: int) -> int:
        """Samples of `epoch` before its batch `step`, which are in full batches all."""
        first = self.start(epoch)
        return int(self.ramp.before(first + step) - self.ramp.before(first))

    def alike(self, epoch: int, step: int) -> int:
        """How many batches from there on have the same full size, in this epoch."""
        first = self.start(epoch)
        left, change = self.steps(epoch) - step, self.ramp.change(first + step)
        return left if change is None else min(left, change - first - step)


class RampedOrder:
    """An order of the smallest batch, read in larger bites: each lane gives its share of every batch.

    So it is, like an `Order`, a function of (seed, epoch, step) that gives each sample once an epoch, and a batch is
    split over ranks after it is defined. An epoch's windows and shards are those of the order without a ramp.
    """

    def __init__(self, order: Order, epochs: Epochs) -> None:
        self.order, self.epochs = order, epochs
        self.rows, self.batch_size = order.rows, epochs.ramp.largest

    def settings(self) -> dict[str, Any]:
        ramp = self.epochs.ramp
        return {**self.order.settings(), "stream.batch_size": ramp.largest, **ramp.settings()}

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        """The part that `rank` of `world` owns of a global batch of the largest size."""
        slots(self.epochs.ramp.smallest, rank, world)  # raises where some would never get a sample
        return slots(self.batch_size, rank, world, size)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        return self.block(epoch, step, 1, rank, world)

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """Batches `step` … `step + count - 1` end to end, as (shard, row), int64 [n]; all of one full size."""
        epochs, order = self.epochs, self.order
        if step < 0 or count < 1 or count > epochs.alike(epoch, step):
            raise IndexError(f"{count} batches from step {step} of epoch {epoch}, of which the same size have fewer")
        size, given = epochs.full(epoch, step), epochs.given(epoch, step)
        last = epochs.size(epoch, step + count - 1)
        full, each = count - (last < size), size // order.lanes
        lanes, places = [], []
        if full:
            own = slots(size, rank, world)
            lane, offset = np.divmod(np.arange(own.start, own.stop), each)
            position = given // order.lanes + np.arange(full)[:, None] * each + offset
            lanes.append(np.broadcast_to(lane, position.shape).reshape(-1))
            places.append(position.reshape(-1))
        if full < count:
            own = slots(size, rank, world, last)
            lane, position = order.rest((given + full * size) // order.lanes, np.arange(own.start, own.stop))
            lanes.append(lane)
            places.append(position)
        return order.locate(epoch, np.concatenate(lanes), np.concatenate(places))

    def ahead(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[Ints]:
        """As `Order.ahead`, of the lanes that the epoch's largest batch reads."""
        epochs, order = self.epochs, self.order
        last = epochs.steps(epoch) - 1
        size, short = epochs.full(epoch, last), epochs.size(epoch, last) < epochs.full(epoch, last)
        own, each = slots(size, rank, world), size // order.lanes
        lanes = np.arange(own.start // each, (own.stop - 1) // each + 1)
        begin, end = epochs.given(epoch, step), epochs.given(epoch, last if short else last + 1)
        seen = np.zeros(len(order.shard_rows), dtype=np.bool_)
        for _, shards in order.span(epoch, lanes, begin // order.lanes, end // order.lanes, seen):
            yield shards
        if short and (shards := unseen(self.block(epoch, last, 1, rank, world)[0], seen)).size:
            yield shards
