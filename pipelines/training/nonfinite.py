"""What happens after a step whose loss or gradient is not finite: `train.nonfinite`."""

from pipelines.console.progress import say
from pipelines.params.train.step import BackOff, Skip
from pipelines.streaming import Batch
from pipelines.training.session import Session
from pipelines.training.step import Outcome
from storage.errors import DataError

_SHOWN = 8  # names of samples in a message


def handle(s: Session, batch: Batch, outcome: Outcome) -> int:
    """Skip the step or back off, as `train.nonfinite` says, on all ranks alike; the weights are as they were before
    the step. Returns by how many steps training has moved: 1, or back. Raises DataError where training ends: for
    `stop`, or past the limit."""
    policy, state = s.params.train.nonfinite, s.state
    before, what = state.step, _describe(s, batch, outcome)
    if isinstance(policy, Skip) and state.skipped_in_row < policy.limit:
        state.skip_step(batch.size)
        _tell(s, f"{what} Skipped ({state.skipped_in_row} of at most {policy.limit} in a row).")
    elif isinstance(policy, BackOff) and state.backoffs < policy.limit:
        scale, count = state.rate_scale * policy.factor, state.backoffs + 1
        s.back_to_checkpoint()
        s.state.rate_scale, s.state.backoffs = scale, count
        _tell(
            s,
            f"{what} Back to the checkpoint of step {s.state.step}, from where the learning rate "
            f"is {scale:g} times the schedule's (time {count} of at most {policy.limit}).",
        )
    else:
        raise DataError(f"{what} {_advice(s)}")
    return s.state.step - before


def _tell(s: Session, message: str) -> None:
    if s.group.ranks.leads:
        say(message)


def _describe(s: Session, batch: Batch, outcome: Outcome) -> str:
    """Which step, and which samples of all ranks."""
    names = list(dict.fromkeys(name for part in s.group.ranks.gather(batch.ids()) for name in part))
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    number = s.state.step + 1
    return (
        f"Step {number}: loss {outcome.loss_sum / outcome.targets:g}, gradient norm {outcome.norm:g}, of the samples "
        f"{shown}. `shardline replay --step {number}` runs this step again."
    )


def _advice(s: Session) -> str:
    train = s.params.train
    past = {"skip": " train.nonfinite.limit steps in a row were skipped.", "backoff": " Backing off did not help."}
    return (
        f"Training cannot go on from there.{past.get(train.nonfinite.name, '')} Most often the steps are too long: "
        f"lower train.lr (now {train.lr:g}) or train.clip_norm (now {train.clip_norm}), or raise train.warmup; else "
        "look at those samples. train.nonfinite set to skip or backoff goes on by itself."
    )
