"""Global batches: what every kind of order says of them, and which part of one a rank owns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.epochs import Epochs
from storage.errors import ParamsError


def slots(batch: int, rank: int, world: int, size: int | None = None) -> slice:
    """The part of a global batch of `size` samples (`batch` by default) that `rank` of `world` owns.

    Sample i sits in slot s = ⌊i·B/size⌋ of the B slots, and rank r owns the slots with ⌊s·world/B⌋ = r. So ranks differ
    by at most one sample in full batches, and a short batch is spread evenly over the same slots.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} ranks")
    if world > batch:
        raise ParamsError(
            f"{world} ranks share stream.batch_size={batch}: some would never get a sample. "
            f"Raise stream.batch_size to at least {world}, or lower train.ranks."
        )
    size = batch if size is None else size
    first, end = (-(-owner * batch // world) for owner in (rank, rank + 1))
    return slice(-(-first * size // batch), -(-end * size // batch))


class Batches(ABC):
    """Global batches of samples, each told by (epoch, step): the same for any number of ranks, which share each one.

    A sample is (shard, row), int64 [n] each. `rows` are the samples of an epoch, `batch_size` those of a full batch (of
    the largest, where it grows), whose slots are cut into `lanes` stripes: a rank reads what belongs to its stripes.
    """

    lanes = 1

    def __init__(self, epochs: Epochs) -> None:
        self.epochs, self.rows, self.batch_size = epochs, epochs.rows, epochs.ramp.largest

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data, as JSON values by the names that people know."""

    @abstractmethod
    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """The parts of `rank` of batches `step` … `step + count - 1` end to end, as (shard, row), int64 [n]. They must
        be of the same full size; only an epoch's last batch may be shorter."""

    @abstractmethod
    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        """As `ahead`, with the step from which each array of shards is needed."""

    @abstractmethod
    def groups(self, slot: Ints, shard: Ints) -> Ints:
        """Which samples of full batches, given by `slot` and `shard`, may take each other's places, int64 [n]: those of
        the same number. So each batch has as many of a number as before."""

    @property
    def steps(self) -> int:
        """Batches of the first epoch, and of all where the batch doesn't grow."""
        return self.epochs.steps(0)

    @property
    def full_steps(self) -> int:
        """Of them, those that are full."""
        return self.epochs.full_steps(0)

    def size(self, step: int) -> int:
        """Samples of the global batch at `step` of the first epoch, and of all where the batch doesn't grow."""
        self.epochs.check(0, step, 1)
        return self.epochs.size(0, step)

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        """The part of a global batch of `size` samples (a full one by default) that `rank` of `world` owns."""
        slots(self.epochs.ramp.smallest, rank, world)  # raises where some would never get a sample
        return slots(self.batch_size, rank, world, size)

    def share(self, epoch: int, step: int, rank: int, world: int) -> int:
        """How many samples of a full batch at `step` are the rank's."""
        own = slots(self.epochs.full(epoch, step), rank, world)
        return int(own.stop - own.start)

    def reach(self, epoch: int, step: int) -> int:
        """How many batches from `step` on are best planned together."""
        return self.epochs.alike(epoch, step)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """The batch at `step`, or the rank's part of it, as (shard, row), int64 [n]."""
        return self.block(epoch, step, 1, rank, world)

    def ahead(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[Ints]:
        """The shards that `rank` reads from `step` to the end of `epoch`, in the order in which it needs them.

        Yields int64 arrays, one for the open windows and one for each later set of windows that needs more shards. A
        shard comes once (of a mixture, once in each epoch of its dataset); in the open windows there may be some whose
        rows have all been read before `step`. Memory is one byte a shard.
        """
        for _, shards in self.needs(epoch, step, rank, world):
            yield shards
