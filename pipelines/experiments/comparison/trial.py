"""One training of a comparison, whose outs nobody wants: only how it went."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.progress import Advance
from pipelines.params import Train
from pipelines.training.communication import Traffic
from pipelines.training.loop import fit
from pipelines.training.optimizers import LineSearchOptimizer
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.training.state import Point, TrainState
from pipelines.workspace import Aside, Workspace
from storage.errors import DataError, Interrupted

POINTS = 50  # of each train curve


@dataclass(frozen=True)
class Course:
    """How a training went. `val` has `sent_mb` beside the metrics: what a rank had sent until then; `passes` over
    batches, more than one a step with a line search; `seconds` of its steps; `failed`: why it ended early, else
    empty."""

    train: list[Point]
    val: list[Point]
    passes: int
    seconds: float
    sent_mb: float
    failed: str = ""


class _Noting(Reporter):
    """Notes how many bytes this rank had sent at each evaluation."""

    def __init__(self, advance: Advance, steps: int, traffic: Traffic) -> None:
        super().__init__(None, advance, "steps", steps)
        self.traffic, self.sent = traffic, dict[int, float]()

    def validation(self, state: TrainState) -> None:
        self.sent.setdefault(state.validated, self.traffic.bytes / 1e6)


def run_trial(
    ws: Workspace, train: Train, ranks: Ranks, stop: StopRequest, advance: Advance, *, eval_every: int | None = None
) -> Course:
    """Train the recipe of `ws` as `train` says, without checkpoints, and with evaluations at the end only where
    `eval_every` (a multiple of train.communication.local_steps) is None. All ranks call it together. Raises
    Interrupted."""
    never = train.communication.local_steps << 40
    changes = {"checkpoint_every": never, "eval_every": eval_every or never, "checkpoints": {}}
    train = Train.model_validate(train.model_dump() | changes)
    with _scratch(ws, ranks) as folder:
        aside = Aside(folder, ws.project, ws.params.model_copy(update={"train": train}), ws)
        with open_session(aside, ranks) as session:
            logged = train.model_copy(update={"log_every": _apart(session.goal.steps)})
            session.params = session.params.model_copy(update={"train": logged})
            return _fit(session, stop, advance)


def _apart(steps: int) -> int:
    """Steps between points of the train curve: a divisor where there is one, so that the last point is the mean of as
    many steps as the others."""
    least = -(-steps // POINTS)
    return next((every for every in range(least, 2 * least + 1) if steps % every == 0), least)


def _fit(s: Session, stop: StopRequest, advance: Advance) -> Course:
    failed, report = "", _Noting(advance, s.goal.steps, s.learner.gradient_sync.traffic)
    try:
        fit(s, report, stop)
    except DataError as error:
        failed = str(error).partition(";")[0].partition(", of the")[0]
    except Interrupted as error:
        raise Interrupted(
            "The comparison was stopped. The trainings that had ended are kept; the same command does the others.",
            error.signum,
        ) from error
    optimizer, state = s.learner.optimizer, s.state
    passes = optimizer.evaluations if isinstance(optimizer, LineSearchOptimizer) else state.step
    val = [point | {"sent_mb": report.sent[int(point["step"])]} for point in state.val_curve]
    return Course(
        state.train_curve, val, passes, report.since.seconds, s.learner.gradient_sync.traffic.bytes / 1e6, failed
    )


@contextmanager
def _scratch(ws: Workspace, ranks: Ranks) -> Iterator[Path]:
    """A folder for the state of a training, the same on every rank."""
    folder = ""
    if ranks.leads:
        ws.state.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".compare.", dir=ws.state)
    folder = ranks.share(folder)
    try:
        yield Path(folder)
    finally:
        if ranks.leads:
            shutil.rmtree(folder, ignore_errors=True)
