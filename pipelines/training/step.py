"""One optimiser step on one global batch."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from pipelines.training.optimizers import LineSearchOptimizer, set_learning_rate
from pipelines.training.optimizers.schedules import learning_rate
from pipelines.training.process.device import seed_step
from pipelines.training.process.heartbeat import beat
from pipelines.training.process.signals import StopRequest
from pipelines.training.session import Session

#: Leaves the gradients of the mean loss over the global batch; gives this rank's sum of losses, and the global number
#: of targets.
Pass = Callable[[], tuple[Tensor, int]]


@dataclass(frozen=True)
class Outcome:
    """Of a step. `loss_sum` over all ranks and `norm` of the gradient are from before the weights changed, which they
    did only where `finite`; `stops`: how many ranks were asked to stop."""

    loss_sum: float
    targets: int
    rate: float
    norm: float
    stops: float
    finite: bool


def take_step(s: Session, forward_backward: Pass, stop: StopRequest) -> Outcome:
    """Step with the rate of `s.state.step`, unless the loss or the gradient is not finite. All ranks decide alike: they
    see the same sum of losses and the same norm (of copies that step by themselves: any that isn't finite counts)."""
    rate = learning_rate(s.state.step, s.goal.steps, s.params.train) * s.state.rate_scale
    set_learning_rate(s.learner.optimizer, rate)
    if isinstance(s.learner.optimizer, LineSearchOptimizer):
        outcome = _search(s, s.learner.optimizer, forward_backward, stop, rate)
    else:
        outcome = _once(s, forward_backward, stop, rate)
    s.learner.optimizer.zero_grad()
    s.checkpoints.saver.settle()  # an optimiser that left the step out hasn't waited for it
    s.learner.gradient_sync.meet(s.state.step + 1, s.goal.steps)  # also after a step that was left out
    if s.average is not None and outcome.finite:
        s.average.update(s.state.step + 1)
    return outcome


def _once(s: Session, forward_backward: Pass, stop: StopRequest, rate: float) -> Outcome:
    seed_step(s.params.seed, s.state.step, s.group.layout.rng_stream)
    with s.learner.gradient_sync.counting():
        loss, targets = forward_backward()
    s.learner.scaler.unscale_(s.learner.optimizer)
    length = s.clip()  # before the sum, for which a GPU is waited for: so this one costs no further wait
    loss_sum, stops = s.group.sum(loss, bool(stop))
    norm = float(length)
    if not isfinite(loss_sum + norm):
        s.learner.gradient_sync.forget(s.state.step + 1)
    finite = isfinite(loss_sum) and (isfinite(norm) or _overflowed(s.learner.scaler))
    if s.learner.gradient_sync.is_local(s.state.step):  # each copy has a gradient of its own
        finite = s.group.sum(float(not finite))[0] == 0
    if finite:
        s.learner.scaler.step(s.learner.optimizer)  # fp16: it leaves out a step whose scaled gradient overflowed
    s.learner.gradient_sync.update(s.learner.scaler)
    return Outcome(loss_sum, targets, rate, norm, stops, finite)


def _overflowed(scaler: torch.amp.GradScaler) -> bool:
    """Whether a gradient that isn't finite may be the scale's fault (fp16), which is halved then, and the step left
    out. Below 1 it makes gradients smaller: they are broken by themselves, and no scale would help."""
    return scaler.is_enabled() and scaler.get_scale() >= 1


def _search(
    s: Session, optimizer: LineSearchOptimizer, forward_backward: Pass, stop: StopRequest, rate: float
) -> Outcome:
    first: list[tuple[float, int, float]] = []

    def evaluate() -> float:
        """The mean loss of the global batch, with the same dropout each time."""
        beat(s.state.step)  # such a step takes many passes
        optimizer.zero_grad()
        seed_step(s.params.seed, s.state.step, s.group.layout.rng_stream)
        with s.learner.gradient_sync.counting():
            loss, targets = forward_backward()
        loss_sum, stops = s.group.sum(loss, bool(stop))
        if not first:
            first.append((loss_sum, targets, stops))
        return loss_sum / targets

    optimizer.step(evaluate)
    loss_sum, targets, stops = first[0]
    norm = optimizer.gradient_norm
    return Outcome(loss_sum, targets, rate, norm, stops, isfinite(loss_sum) and isfinite(norm))
