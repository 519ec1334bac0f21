"""Where epochs of global batches begin and end: arithmetic on the step alone."""

from bisect import bisect_right
from math import ceil, floor
from typing import Literal

from pipelines.streaming.order.batch_ramp import Ramp

#: What becomes of the samples after an epoch's last full batch: a short batch, nothing, or the next epoch's (mixtures).
Rest = Literal["keep", "drop", "wrap"]


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

    # -- epochs --------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether each epoch has a batch."""
        return min(self._steps) > 0

    def steps(self, epoch: int) -> int:
        """Batches of `epoch`."""
        return self._steps[bisect_right(self._epochs, epoch) - 1]

    def full_steps(self, epoch: int) -> int:
        """Full batches of `epoch`: all, or all but the last."""
        steps = self.steps(epoch)
        return steps - (self.rest == "keep" and self.given(epoch, steps) > self.rows)

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

    # -- batches of an epoch ---------------------------------------------------------------------------------------

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
        return self.ramp.before(first + step) - self.ramp.before(first)

    def step(self, epoch: int, given: int) -> int:
        """The step of `epoch` whose full batch has the sample before which there are `given` others."""
        return self.ramp.steps(self.start(epoch), given)[0]

    def alike(self, epoch: int, step: int) -> int:
        """How many batches from there on have the same full size, in this epoch."""
        first = self.start(epoch)
        left, change = self.steps(epoch) - step, self.ramp.change(first + step)
        return left if change is None else min(left, change - first - step)

    def check(self, epoch: int, step: int, count: int) -> None:
        """Raise IndexError unless batches `step` … `step + count - 1` are in `epoch`, and of the same full size."""
        steps = self.steps(epoch)
        if step < 0 or count < 1 or step + count > steps:
            raise IndexError(f"steps {step} to {step + count - 1} of an epoch of {steps} steps")
        if count > self.alike(epoch, step):
            raise IndexError(f"steps {step} to {step + count - 1} of epoch {epoch}, between which the batch grows")
