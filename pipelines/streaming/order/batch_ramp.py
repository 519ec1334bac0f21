"""How many samples the global batch of a step has: one number, or numbers that grow with the step."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.params import check_ramp
from pipelines.streaming.arrays import Ints
from storage.errors import ParamsError


class Ramp:
    """`sizes`: global step → samples of the global batch from there on. Raises ParamsError unless they begin at step 0,
    grow in multiples of the first, and end at `last`, where it is given."""

    def __init__(self, sizes: Mapping[int, int], last: int | None = None) -> None:
        self.starts, self.sizes = sorted(sizes), [int(sizes[step]) for step in sorted(sizes)]
        self.smallest, self.largest, self.grows = self.sizes[0], self.sizes[-1], len(self.sizes) > 1
        if self.smallest < 1:
            raise ParamsError(f"stream.batch_size={self.smallest}: must be at least 1.")
        try:
            check_ramp(dict(zip(self.starts, self.sizes, strict=True)), self.largest if last is None else last)
        except ValueError as error:
            raise ParamsError(f"stream.{error}.") from None
        rises = np.diff(self.starts) * self.sizes[:-1]
        self._before: list[int] = [0, *np.cumsum(rises, dtype=np.int64).tolist()]

    @classmethod
    def of(cls, batch: "int | Ramp") -> "Ramp":
        """The ramp itself, or the one of batches of one size."""
        return batch if isinstance(batch, Ramp) else cls({0: batch})

    def size(self, step: int) -> int:
        """Samples of the batch at global step `step`."""
        return self.sizes[bisect_right(self.starts, step) - 1]

    def change(self, step: int) -> int | None:
        """The first step after `step` with another size."""
        place = bisect_right(self.starts, step)
        return self.starts[place] if place < len(self.starts) else None

    def before(self, step: int) -> int:
        """Samples of the full batches before `step`."""
        place = bisect_right(self.starts, step) - 1
        return self._before[place] + (step - self.starts[place]) * self.sizes[place]

    def before_each(self, steps: Ints) -> Ints:
        """Samples of the full batches before each step, int64 [n]."""
        if not self.grows:
            return np.multiply(steps, self.largest)
        place = np.searchsorted(self.starts, steps, side="right") - 1
        starts, sizes, before = (np.array(of, dtype=np.int64)[place] for of in (self.starts, self.sizes, self._before))
        counts: Ints = before + (steps - starts) * sizes
        return counts

    def steps(self, first: int, samples: int) -> tuple[int, int]:
        """How many full batches from step `first` on `samples` fill, and what is left over."""
        goal = self.before(first) + samples
        place = bisect_right(self._before, goal) - 1
        whole, rest = divmod(goal - self._before[place], self.sizes[place])
        full = self.starts[place] + whole - first
        return full, rest

    def settings(self) -> dict[str, Any]:
        """What a state says of it: nothing where the batch doesn't grow."""
        sizes = {str(step): size for step, size in zip(self.starts, self.sizes, strict=True)}
        return {"stream.batch_ramp": sizes} if self.grows else {}
