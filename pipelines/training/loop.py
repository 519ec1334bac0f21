"""The training loop."""

from contextlib import closing
from functools import partial
from signal import SIGTERM, Signals
from time import perf_counter

from torch import Tensor

from pipelines.streaming import Batch
from pipelines.training import nonfinite
from pipelines.training.data.targets import global_targets
from pipelines.training.parallelism import share_buffers
from pipelines.training.process.heartbeat import beat
from pipelines.training.process.signals import StopRequest
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session
from pipelines.training.step import take_step
from pipelines.training.validation import Sums, val_batches
from storage.errors import Interrupted


def fit(s: Session, report: Reporter, stop: StopRequest) -> None:
    """Train until the steps are done or patience is out. Raises Interrupted (state saved), DataError (loss not finite).

    A step's batch, learning rate and randomness are functions of (params, data, step), so an interruption changes
    nothing; nor does the number of ranks, but for rounding and each rank's own dropout.
    """
    batches = iter(s.data.stream)
    stopping = False
    while True:
        if not stopping and s.validation_due():
            stopping = validate(s, stop)
            report.validation(s.state)
        if stopping and s.learner.gradient_sync.together(s.state.step, s.goal.steps):
            s.save(wait=True)
            raise _interrupted(s, stop)
        if s.checkpoint_due():
            s.save()
        if s.done():
            return

        began, waited = perf_counter(), s.data.stream.wait_seconds
        with s.learner.gradient_sync.timing(s.state.step):
            batch = next(batches)  # the last one's copy to the device is done: its loss is known
            outcome = take_step(s, partial(forward_backward, s, batch), stop)
        stopping |= outcome.stops > 0  # on any rank: so all of them leave after the same step
        beat(s.state.step + 1)
        if not outcome.finite:
            report.advance(nonfinite.handle(s, batch, outcome))
            continue

        state, targets = s.state, outcome.targets
        state.add_step(outcome.loss_sum, targets, batch.size)
        report.step(perf_counter() - began, s.data.stream.wait_seconds - waited, targets)
        if state.step % s.params.train.log_every == 0 or state.step == s.goal.steps:
            point, times = state.close_point(outcome.rate, outcome.norm), s.data.stream.meter.snapshot()
            report.point(point, times, s.learner.gradient_sync)


def forward_backward(s: Session, batch: Batch) -> tuple[Tensor, int]:
    """Gradients of the mean loss over the *global* batch. Returns this rank's sum of losses, and the global number of
    targets. Every rank divides by the global number, so how samples fall on ranks or microbatches changes
    only rounding."""
    task, learner, group = s.goal.task, s.learner, s.group
    inputs, targets = task.pair(batch.arrays, group.device)
    count = global_targets(batch, task, group)
    weight = group.layout.data_world / count  # gradients are averaged over the parts of the batch

    def objective(answers: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        loss = task.loss(answers, wanted, s.params.train.label_smoothing)
        return loss, learner.scaler.scale(loss * weight)

    learner.runner.local = learner.gradient_sync.is_local(s.state.step)
    most = -(-batch.size // group.layout.data_world)
    return learner.runner.backward(inputs, targets, objective, most, task.beside(batch.arrays, group.device)), count


def validate(s: Session, stop: StopRequest) -> bool:
    """Measure the loss on the val split and note it in the state; True when a signal cut it short (nothing noted)."""
    sums, stopped = Sums(), False
    task, learner, group = s.goal.task, s.learner, s.group
    learner.model.eval()
    share_buffers(learner.model, group.mesh)
    with s.averaged(), closing(val_batches(s)) as batches:
        for domain, batch in batches:
            inputs, targets = task.pair(batch.arrays, group.device)
            answers = learner.runner.answers(inputs, task.beside(batch.arrays, group.device))
            if answers is not None and group.layout.owns_loss:
                sums.loss[domain] += float(task.loss(answers, targets))
                sums.hits[domain] += float(task.hits(answers, targets))
            sums.count[domain] += global_targets(batch, task, group)
            beat(s.state.step)
            stopped = group.sum(bool(stop))[0] > 0
            if stopped:
                break
    learner.model.train()
    if not stopped:
        s.note_validation(sums.summary(s))
    return stopped


def _interrupted(s: Session, stop: StopRequest) -> Interrupted:
    signum = stop.signum or SIGTERM
    return Interrupted(
        f"Training stopped by {Signals(signum).name} after step {s.state.step} of {s.goal.steps}; its state is saved. "
        "The same command goes on from there.",
        signum,
    )
