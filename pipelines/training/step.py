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
    rate = learning_rate(s.state.step, s.steps, s.params.train) * s.state.rate_scale
    set_learning_rate(s.optimizer, rate)
    if isinstance(s.optimizer, LineSearchOptimizer):
        outcome = _search(s, s.optimizer, forward_backward, stop, rate)
    else:
        outcome = _once(s, forward_backward, stop, rate)
    s.optimizer.zero_grad()
    s.checkpoints.settle()  # an optimiser that left the step out hasn't waited for it
    s.gradient_sync.meet(s.state.step + 1, s.steps)  # also after a step that was left out
    if s.average is not None and outcome.finite:
        s.average.update(s.state.step + 1)
    return outcome


def _once(s: Session, forward_backward: Pass, stop: StopRequest, rate: float) -> Outcome:
    seed_step(s.params.seed, s.state.step, s.layout.rng_stream)
    with s.gradient_sync.counting():
        loss, targets = forward_backward()
    s.scaler.unscale_(s.optimizer)
    length = s.clip()  # before the sum, for which a GPU is waited for: so this one costs no further wait
    loss_sum, stops = s.ranks.sum(loss, bool(stop), device=s.device)
    norm = float(length)
    if not isfinite(loss_sum + norm):
        s.gradient_sync.forget(s.state.step + 1)
    finite = isfinite(loss_sum) and (isfinite(norm) or _overflowed(s.scaler))
    if s.gradient_sync.is_local(s.state.step):  # each copy has a gradient of its own
        finite = s.ranks.sum(float(not finite), device=s.device)[0] == 0
    if finite:
        s.scaler.step(s.optimizer)  # fp16: it leaves out a step whose scaled gradient overflowed
    s.gradient_sync.update(s.scaler)
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
        seed_step(s.params.seed, s.state.step, s.layout.rng_stream)
        with s.gradient_sync.counting():
            loss, targets = forward_backward()
        loss_sum, stops = s.ranks.sum(loss, bool(stop), device=s.device)
        if not first:
            first.append((loss_sum, targets, stops))
        return loss_sum / targets

    optimizer.step(evaluate)
    loss_sum, targets, stops = first[0]
    norm = optimizer.gradient_norm
    return Outcome(loss_sum, targets, rate, norm, stops, isfinite(loss_sum) and isfinite(norm))
