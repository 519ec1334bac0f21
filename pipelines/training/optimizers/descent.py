"""What the optimisers with a line search share: directions along which the loss of one batch is searched."""

from abc import abstractmethod
from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from pipelines.params.train.optimizer import LineSearch
from pipelines.training.optimizers.line_search import Point, strong_wolfe
from pipelines.training.optimizers.vectors import Vector, add, copies, inner, local, scale

#: Gives the mean loss of the global batch at the present weights, the same on every rank, and leaves its gradients.
Closure = Callable[[], float]


class LineSearchOptimizer(torch.optim.Optimizer):
    """Some iterations of `direction` and strong-Wolfe line search on a batch, in each step.

    Every rank must see the same losses and (up to its own shards) gradients; inner products are summed over the shards.
    So all ranks take the same decisions. The state is plain tensors: a subclass' vectors have their parameter's shape,
    scalars are the same under each parameter. It is there from the start.

    After a step: `gradient_norm` at its start, `evaluations` of closures so far.
    """

    gradient_norm = 0.0
    evaluations = 0

    def __init__(self, groups: list[dict[str, Any]], settings: LineSearch, lr: float) -> None:
        super().__init__(groups, {"lr": lr})
        self.settings = settings
        self._parameters = [p for group in self.param_groups for p in group["params"]]
        for p in self._parameters:
            self.state[p] = self.new_state(p)

    @abstractmethod
    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before the first step."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first direction of a batch."""

    @abstractmethod
    def forget(self) -> bool:
        """Make the next direction that of steepest descent; False where it was."""

    @abstractmethod
    def direction(self, gradient: Vector) -> Vector:
        """Where to search from here."""

    @abstractmethod
    def first_step(self, direction: Vector, slope: float, rate: float) -> float:
        """The step length to try first."""

    @abstractmethod
    def learn(self, direction: Vector, slope: float, step: float, before: Vector, after: Vector) -> None:
        """A step of this length was taken; the gradients before and after it."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """Go down on one batch. Returns its loss before, without weight decay; where that or its gradient is not
        finite, nothing is changed. Raises ValueError without a closure."""
        if closure is None:
            raise ValueError(f"{type(self).__name__}.step needs a closure that evaluates the batch again")
        loss, value = self._evaluate(closure)
        gradient = self._gradient()
        self.gradient_norm = sqrt(inner(self._parameters, gradient, gradient))
        if not isfinite(value) or not isfinite(self.gradient_norm):
            return loss
        self.begin()
        self._iterate(closure, value, gradient)
        return loss

    def _iterate(self, closure: Closure, value: float, gradient: Vector) -> None:
        norm, left = self.gradient_norm, self.settings.iterations
        while left and norm > self.settings.tolerance:
            direction = self.direction(gradient)
            slope = inner(self._parameters, gradient, direction)
            if not slope < 0:  # no descent: rounding, or another batch's memory
                if not self.forget():
                    return
                continue
            point = self._search(closure, direction, value, slope)
            if point is None:
                if not self.forget():
                    return
                gradient = self._gradient_again(closure)
                continue
            after = self._gradient()
            self.learn(direction, slope, point.step, gradient, after)
            value, gradient, left = point.value, after, left - 1
            norm = sqrt(inner(self._parameters, gradient, gradient))

    def _search(self, closure: Closure, direction: Vector, value: float, slope: float) -> Point | None:
        """Move to a better point along `direction` and leave the gradients of there; None, and no move, without one."""
        weights = [local(p) for p in self._parameters]
        start, at = copies(weights), 0.0

        def function(step: float) -> tuple[float, float]:
            nonlocal at
            at = step
            for weight, origin, part in zip(weights, start, direction, strict=True):
                torch.add(origin, part, alpha=step, out=weight)
            found = self._evaluate(closure)[1]
            return found, inner(self._parameters, self._gradient(copy=False), direction)

        first = self.first_step(direction, slope, self.param_groups[0]["lr"])
        s = self.settings
        noise = 10 * torch.finfo(weights[0].dtype).eps * abs(value)
        point = strong_wolfe(
            function, value, slope, first, c1=s.c1, c2=s.c2, evaluations=s.evaluations, noise=noise
        )  # fmt: skip
        if point is None:
            for weight, origin in zip(weights, start, strict=True):
                weight.copy_(origin)
        elif point.step != at:
            function(point.step)
        return point

    def _evaluate(self, closure: Closure) -> tuple[float, float]:
        """(loss, loss with weight decay); the gradients are those of the second."""
        self.evaluations += 1
        with torch.enable_grad():
            loss = value = float(closure())
        for group in self.param_groups:
            decay = group["weight_decay"]
            if not decay:
                continue
            weights = [local(p) for p in group["params"]]
            value += decay / 2 * inner(group["params"], weights, weights)
            for p, weight in zip(group["params"], weights, strict=True):
                if p.grad is not None:
                    local(p.grad).add_(weight, alpha=decay)
        return loss, value

    def _gradient_again(self, closure: Closure) -> Vector:
        self._evaluate(closure)
        return self._gradient()

    def _gradient(self, *, copy: bool = True) -> Vector:
        parts = [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in self._parameters]
        return copies(parts) if copy else parts

    def _slots(self, name: str) -> Vector:
        """A vector of the state, to be written into."""
        return [local(self.state[p][name]) for p in self._parameters]

    def _scalar(self, name: str) -> float:
        return float(self.state[self._parameters[0]][name])

    def _set_scalar(self, name: str, value: float) -> None:
        for p in self._parameters:
            self.state[p][name].fill_(value)

    def _negative(self, gradient: Vector) -> Vector:
        return scale(gradient, -1.0)

    def _combine(self, gradient: Vector, beta: float, direction: Vector) -> Vector:
        """-gradient + beta · direction."""
        return add(self._negative(gradient), beta, direction)
