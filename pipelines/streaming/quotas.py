"""How many samples each of several datasets has given by any step: whole numbers that follow weights which change.

Weights are given at steps and change linearly between them, as stairs: a ramp has up to 256 stairs, each as wide as
its share of the steps. All is exact integer arithmetic, in closed form: no step depends on having seen another.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import numpy.typing as npt

from pipelines.streaming.ramp import Ramp

Ints = npt.NDArray[np.int64]
Weights = Mapping[int, Sequence[Fraction]]

_UNIT = 1 << 20  # a sample, and the sum of the weights, in integers
_STAIRS = 256


class Quotas:
    """Numbers of samples of D datasets in batches of `batch` (or of a ramp's sizes), by `weights`: step → D weights,
    from step 0 on, none negative and not all 0.

    After any number of steps, what a dataset has given is within ⌈log2 D⌉ / 2 samples of what its weights ask for: one
    sample at most for up to four datasets. It never drifts.

    The datasets are the leaves of a balanced tree. A node that has given n samples has given those of its first child
    that belong to the time when, by the weights, the node would have reached n; the second child has the others.
    """

    def __init__(self, weights: Weights, batch: int | Ramp) -> None:
        self.ramp = batch if isinstance(batch, Ramp) else Ramp({0: batch})
        starts, self._weights = _stairs(weights)
        self._starts = starts
        self.datasets = self._weights.shape[1]
        rises = np.diff(self.ramp.before(starts))[:, None] * self._weights[:-1]
        # [stairs, D]: what is due at the start of each stair, in units
        self._due = np.concatenate([np.zeros((1, self.datasets), np.int64), np.cumsum(rises, axis=0)])

    def given(self, step: npt.ArrayLike) -> Ints:
        """Samples that each dataset has given before each step, int64 [n, D]; their sums are those of the batches."""
        return self._split(self.ramp.before(np.reshape(step, -1)), 0, self.datasets)

    def shares(self, step: int) -> npt.NDArray[np.float64]:
        """Of each dataset in what is given at `step`, float64 [D]."""
        stair = np.searchsorted(self._starts, step, side="right") - 1
        shares: npt.NDArray[np.float64] = self._weights[stair] / _UNIT
        return shares

    def _split(self, given: Ints, first: int, end: int) -> Ints:
        """What datasets [first, end) have given when all of them have given `given` ([n]), int64 [n, end - first]."""
        if end - first == 1:
            return given[:, None]
        middle = (first + end) // 2
        of_first = self._of_first(given, slice(first, end), slice(first, middle))
        left, right = self._split(of_first, first, middle), self._split(given - of_first, middle, end)
        return np.concatenate([left, right], axis=1)

    def _of_first(self, given: Ints, node: slice, child: slice) -> Ints:
        due, weight = self._due[:, node].sum(axis=1), self._weights[:, node].sum(axis=1)
        child_due, child_weight = self._due[:, child].sum(axis=1), self._weights[:, child].sum(axis=1)
        if weight[-1] == 0:  # what was rounded up to a sample before the end of a node's weights
            weight[-1] = child_weight[-1] = 1
        units = given * _UNIT
        stair = np.searchsorted(due, units, side="right") - 1
        whole, part = np.divmod(units - due[stair], weight[stair])
        reached = child_due[stair] + whole * child_weight[stair] + part * child_weight[stair] // weight[stair]
        halves: Ints = (reached + _UNIT // 2) // _UNIT
        return halves


def _stairs(weights: Weights) -> tuple[Ints, Ints]:
    """(steps at which stairs start, int64 [stairs]; weights on them, int64 [stairs, D], each summing to _UNIT)."""
    steps = sorted(weights)
    shares = [_shares(weights[step]) for step in steps]
    starts, levels = [], []
    for step, end, before, after in zip(steps, steps[1:], shares, shares[1:], strict=False):
        count = 1 if before == after else min(_STAIRS, end - step)
        bounds = [step + (end - step) * stair // count for stair in range(count + 1)]
        for start, stop in pairwise(bounds):
            way = Fraction(start + stop - 1 - 2 * step, 2 * (end - step))  # up the ramp, on the mean of the steps
            starts.append(start)
            levels.append([low + (high - low) * way for low, high in zip(before, after, strict=True)])
    starts.append(steps[-1])
    levels.append(shares[-1])
    return np.array(starts, dtype=np.int64), np.array([_whole(level) for level in levels], dtype=np.int64)


def _shares(weights: Sequence[Fraction]) -> list[Fraction]:
    total = sum(weights)
    return [weight / total for weight in weights]


def _whole(shares: list[Fraction]) -> list[int]:
    """Integers in proportion to `shares`, which sum to 1, that sum to _UNIT, by largest remainders."""
    exact = [share * _UNIT for share in shares]
    whole = [floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: whole[place] - exact[place])
    for place in by_remainder[: _UNIT - sum(whole)]:
        whole[place] += 1
    return whole
