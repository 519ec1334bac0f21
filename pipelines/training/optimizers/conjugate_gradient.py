"""Nonlinear conjugate gradient."""

from math import sqrt

import torch
from torch import Tensor

from pipelines.params.train.optimizer import ConjugateGradient
from pipelines.training.optimizers.descent import LineSearchOptimizer
from pipelines.training.optimizers.vectors import Vector, inner

_ETA = 0.01  # of Hager & Zhang 2005, equation 1.6: how negative β may be


class ConjugateGradientOptimizer(LineSearchOptimizer):
    """Directions d ← -g + β·d, with β by Polak & Ribière, never negative, or by Hager & Zhang (2005, SIAM J. Optim. 16,
    170-192).

    It starts anew from steepest descent on each batch, since the last gradient was another function's; with `carry`
    it goes on. State: `direction` and `gradient` of the last iteration, `progress` (its step length times its slope),
    and `going`, 1 once these are there.
    """

    settings: ConjugateGradient

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        scalars = {name: torch.zeros((), dtype=torch.float64) for name in ("progress", "going")}
        return {name: torch.zeros_like(parameter) for name in ("direction", "gradient")} | scalars

    def begin(self) -> None:
        if not self.settings.carry:
            self.forget()

    def forget(self) -> bool:
        going = self._scalar("going") > 0
        self._set_scalar("going", 0.0)
        return going

    def direction(self, gradient: Vector) -> Vector:
        if not self._scalar("going"):
            return self._negative(gradient)
        before = self._slots("direction")
        return self._combine(gradient, self._beta(gradient, before), before)

    def _beta(self, gradient: Vector, direction: Vector) -> float:
        p, last = self._parameters, self._slots("gradient")
        change = [new - old for new, old in zip(gradient, last, strict=True)]
        if self.settings.formula == "polak_ribiere":
            return max(0.0, inner(p, gradient, change) / inner(p, last, last))
        along = inner(p, direction, change)
        if along <= 0:  # not after a search on the same batch; else it could be any number
            return 0.0
        beta = (
            inner(p, gradient, change) - 2 * inner(p, change, change) * inner(p, gradient, direction) / along
        ) / along
        least = min(_ETA, sqrt(inner(p, last, last)))
        return max(beta, -1 / (sqrt(inner(p, direction, direction)) * least))

    def first_step(self, direction: Vector, slope: float, rate: float) -> float:
        """As long that the loss falls as much to first order as by the last step (Nocedal & Wright 2006, equation
        3.60); before there is one, such that the weights move by `rate`."""
        progress = self._scalar("progress")
        if progress < 0:
            return progress / slope
        return rate / sqrt(inner(self._parameters, direction, direction))

    def learn(self, direction: Vector, slope: float, step: float, before: Vector, after: Vector) -> None:
        self._set_scalar("progress", step * slope)
        self._set_scalar("going", 1.0)
        for name, vector in (("direction", direction), ("gradient", before)):
            for slot, part in zip(self._slots(name), vector, strict=True):
                slot.copy_(part)
