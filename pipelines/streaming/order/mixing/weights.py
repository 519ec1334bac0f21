"""Weights of datasets that are mixed, by the step: given at some steps, linear between them, in stairs at last."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor, isfinite

import numpy as np

from pipelines.streaming.arrays import Ints
from storage.errors import ParamsError

#: A weight, or step → weight.
Weight = float | Mapping[int, float]
#: step → weights of the datasets in their order, from step 0 on, at each step where one bends.
Schedule = Mapping[int, Sequence[Fraction]]

UNIT = 1 << 20  # the sum of the weights, in integers
_STAIRS = 256


def schedule(names: Sequence[str], weights: Mapping[str, Weight]) -> Schedule:
    """Those of `names`, checked."""
    if not names or set(names) != set(weights):
        raise ParamsError(
            f"stream.mixture: weights for {', '.join(sorted(weights)) or 'nothing'}, "
            f"but the datasets are {', '.join(sorted(names)) or 'none'}."
        )
    bends = {name: _bends(name, weights[name]) for name in names}
    steps = sorted({0}.union(*bends.values()))
    made = {step: [_at(bends[name], step) for name in names] for step in steps}
    for step, values in made.items():
        if not any(values):
            raise ParamsError(f"stream.mixture: all weights are 0 at step {step}.")
    return made


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


def stairs(schedule: Schedule) -> tuple[Ints, Ints]:
    """(steps at which stairs start, int64 [stairs]; weights on them, int64 [stairs, D], each summing to UNIT)."""
    steps = sorted(schedule)
    shares = [_shares(schedule[step]) for step in steps]
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
    """Integers in proportion to `shares`, which sum to 1, that sum to UNIT, by largest remainders."""
    exact = [share * UNIT for share in shares]
    whole = [floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: whole[place] - exact[place])
    for place in by_remainder[: UNIT - sum(whole)]:
        whole[place] += 1
    return whole
