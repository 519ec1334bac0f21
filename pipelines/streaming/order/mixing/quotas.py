"""How many samples each of several datasets has given by any step: whole numbers that follow weights which change.

All is exact integer arithmetic, in closed form: no step depends on having seen another.
"""

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.batch_ramp import Ramp
from pipelines.streaming.order.mixing.weights import UNIT, Schedule, stairs


class Quotas:
    """Numbers of samples of D datasets in batches of `batch` (or of a ramp's sizes), by `weights`: step → D weights,
    from step 0 on, none negative and not all 0. Between those steps weights change linearly, as stairs: a ramp has up
    to 256 stairs, each as wide as its share of the steps.

    After any number of steps, what a dataset has given is within ⌈log2 D⌉ / 2 samples of what its weights ask for: one
    sample at most for up to four datasets. It never drifts.

    The datasets are the leaves of a balanced tree. A node that has given n samples has given those of its first child
    that belong to the time when, by the weights, the node would have reached n; the second child has the others.
    """

    def __init__(self, weights: Schedule, batch: int | Ramp) -> None:
        self.ramp = Ramp.of(batch)
        self._starts, self._weights = stairs(weights)
        self.datasets = self._weights.shape[1]
        rises = np.diff(self.ramp.before_each(self._starts))[:, None] * self._weights[:-1]
        # [stairs, D]: what is due at the start of each stair, in UNITs of a sample
        self._due = np.concatenate([np.zeros((1, self.datasets), np.int64), np.cumsum(rises, axis=0)])

    def given(self, steps: npt.ArrayLike) -> Ints:
        """Samples that each dataset has given before each step, int64 [n, D]; their sums are those of the batches."""
        return self._split(self.ramp.before_each(np.array(steps, np.int64, ndmin=1)), 0, self.datasets)

    def shares(self, step: int) -> npt.NDArray[np.float64]:
        """Of each dataset in what is given at `step`, float64 [D]."""
        stair = np.searchsorted(self._starts, step, side="right") - 1
        shares: npt.NDArray[np.float64] = self._weights[stair] / UNIT
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
        units = given * UNIT
        stair = np.searchsorted(due, units, side="right") - 1
        whole, part = np.divmod(units - due[stair], weight[stair])
        reached = child_due[stair] + whole * child_weight[stair] + part * child_weight[stair] // weight[stair]
        halves: Ints = (reached + UNIT // 2) // UNIT
        return halves
