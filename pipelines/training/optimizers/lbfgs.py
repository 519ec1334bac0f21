"""Limited-memory BFGS."""

from math import sqrt

import torch
from torch import Tensor

from pipelines.params.train.optimizer import LBFGS
from pipelines.training.optimizers.descent import LineSearchOptimizer
from pipelines.training.optimizers.vectors import Vector, add, inner, scale

_CURVED = 1e-10  # of |s|·|y|: below, s·y is rounding


class LBFGSOptimizer(LineSearchOptimizer):
    """Directions by the two-loop recursion over the last `history` pairs (Nocedal 1980; Liu & Nocedal 1989).

    Both gradients of a pair are of the same batch, so the pairs of earlier batches stay. State: the pair i's step
    `step_i` and change of the gradient `change_i`, as a ring; `count` of all pairs so far, and `oldest`, the first one
    that counts. torch's own keeps its history as flat lists under the first parameter, takes one group only and no
    weight decay, and can't be resharded.
    """

    settings: LBFGS

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        slots = [f"{kind}_{index}" for index in range(self.settings.history) for kind in ("step", "change")]
        scalars = {name: torch.zeros((), dtype=torch.float64) for name in ("count", "oldest")}
        return {slot: torch.zeros_like(parameter) for slot in slots} | scalars

    def begin(self) -> None:
        """The history goes on from batch to batch."""

    def forget(self) -> bool:
        known = bool(self._pairs())
        self._set_scalar("oldest", self._scalar("count"))
        return known

    def _pairs(self) -> list[int]:
        """Slots of the pairs that count, the oldest first."""
        count, size = int(self._scalar("count")), self.settings.history
        return [number % size for number in range(max(int(self._scalar("oldest")), count - size), count)]

    def direction(self, gradient: Vector) -> Vector:
        p = self._parameters
        direction = self._negative(gradient)
        pairs = [(self._slots(f"step_{i}"), self._slots(f"change_{i}")) for i in self._pairs()]
        if not pairs:
            return direction
        curvatures = [inner(p, step, change) for step, change in pairs]
        shares: list[float] = []
        for (step, change), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
            shares.append(inner(p, step, direction) / curvature)
            add(direction, -shares[-1], change)
        newest = pairs[-1][1]
        direction = scale(direction, curvatures[-1] / inner(p, newest, newest))
        for (step, change), curvature, share in zip(pairs, curvatures, reversed(shares), strict=True):
            add(direction, share - inner(p, change, direction) / curvature, step)
        return direction

    def first_step(self, direction: Vector, slope: float, rate: float) -> float:
        """`rate`; without a history, such that the weights move by no more than that."""
        if self._pairs():
            return rate
        return rate * min(1.0, 1 / sqrt(inner(self._parameters, direction, direction)))

    def learn(self, direction: Vector, slope: float, step: float, before: Vector, after: Vector) -> None:
        p = self._parameters
        moved = scale(direction, step)
        change = [new - old for new, old in zip(after, before, strict=True)]
        if inner(p, moved, change) <= _CURVED * sqrt(inner(p, moved, moved) * inner(p, change, change)):
            return
        count = int(self._scalar("count"))
        index = count % self.settings.history
        for name, vector in ((f"step_{index}", moved), (f"change_{index}", change)):
            for slot, part in zip(self._slots(name), vector, strict=True):
                slot.copy_(part)
        self._set_scalar("count", count + 1)
