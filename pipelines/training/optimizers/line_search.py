"""A step length along a direction that meets the strong Wolfe conditions."""

from collections.abc import Callable
from dataclasses import dataclass
from math import copysign, isfinite, sqrt

#: At a step length: the value of the function there, and its slope along the direction.
Slope = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A step length with the function's value and slope there."""

    step: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        return isfinite(self.value) and isfinite(self.slope)


def strong_wolfe(
    function: Slope,
    value: float,
    slope: float,
    first: float,
    *,
    c1: float,
    c2: float,
    evaluations: int,
    noise: float = 0.0,
) -> Point | None:
    """A point with f(t) ≤ f(0) + c1·t·f'(0) and |f'(t)| ≤ c2·|f'(0)|, by bracketing and cubic interpolation
    (Nocedal & Wright 2006, algorithms 3.5 and 3.6); `value` and `slope` < 0 are those at 0, `first` is tried first.

    After `evaluations` of them, the lowest point that decreases the function sufficiently; None where there is none.
    Where values differ by less than `noise`, their rounding, the slopes decide alone: f'(t) ≤ (2·c1 - 1)·f'(0) takes
    the place of the first condition (Hager & Zhang 2005, equation 4.1). The last call of `function` is not always at
    the point that is returned. A value that is not finite counts as too far. Decisions depend on the numbers alone:
    where all ranks see the same ones, they do the same.
    """
    start = Point(0.0, value, slope)
    search = _Search(function, start, c1, c2, evaluations, noise)
    before, step = start, first
    while search.left:
        point = search.at(step)
        high = search.too_high(point)
        if not high and search.flat(point):
            return point
        if high or (before is not start and point.value >= before.value):
            return search.zoom(before, point)
        if point.slope >= 0:
            return search.zoom(point, before)
        before, step = point, _further(before, point)
    return search.best


@dataclass
class _Search:
    function: Slope
    start: Point
    c1: float
    c2: float
    left: int
    noise: float
    best: Point | None = None

    def at(self, step: float) -> Point:
        self.left -= 1
        point = Point(step, *self.function(step))
        if not self.too_high(point) and (self.best is None or point.value < self.best.value):
            self.best = point
        return point

    def too_high(self, point: Point) -> bool:
        start = self.start
        if not point.finite:
            return True
        if point.value <= start.value + self.c1 * point.step * start.slope:
            return False
        return abs(point.value - start.value) > self.noise or point.slope > (2 * self.c1 - 1) * start.slope

    def flat(self, point: Point) -> bool:
        return abs(point.slope) <= -self.c2 * self.start.slope

    def zoom(self, low: Point, high: Point) -> Point | None:
        """Narrow down an interval that holds a point which is wanted; `low` is the better end."""
        while self.left and low.step != high.step:
            point = self.at(_inside(low, high))
            too_high = self.too_high(point)
            if not too_high and self.flat(point):
                return point
            if too_high or point.value >= low.value:
                high = point
                continue
            if point.slope * (high.step - low.step) >= 0:
                high = low
            low = point
        return self.best


def _further(before: Point, point: Point) -> float:
    """Where to look behind `point`: the minimum that the cubic foretells, 2 to 10 times as far."""
    foretold = _cubic_minimum(before, point)
    low, high = 2 * point.step, 10 * point.step
    return low if foretold is None else min(max(foretold, low), high)


def _inside(low: Point, high: Point) -> float:
    """Where to look between two points: the cubic's minimum, but for a tenth at either end; else the middle."""
    left, right = sorted((low.step, high.step))
    middle, margin = (left + right) / 2, (right - left) / 10
    if not high.finite:
        return left + margin if left > 0 else left + 2 * margin  # far too long: come back at once
    foretold = _cubic_minimum(low, high)
    if foretold is None or not left <= foretold <= right:
        return middle
    return min(max(foretold, left + margin), right - margin)


def _cubic_minimum(a: Point, b: Point) -> float | None:
    """The minimum of the cubic through both values and slopes (Nocedal & Wright 2006, equation 3.59)."""
    if a.step == b.step or not (a.finite and b.finite):
        return None
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return None
    d2 = copysign(sqrt(square), b.step - a.step)
    below = b.slope - a.slope + 2 * d2
    if below == 0:
        return None
    minimum = b.step - (b.step - a.step) * (b.slope + d2 - d1) / below
    return minimum if isfinite(minimum) else None
