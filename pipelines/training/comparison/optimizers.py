"""Train a recipe with each optimiser, and say how they did: a table, a plot, MLflow runs."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.params import Train, suggestion
from pipelines.progress import Advance, progress, say
from pipelines.tracking import open_run
from pipelines.training.comparison.contenders import CONTENDERS, Contender
from pipelines.training.comparison.report import draw, markdown, show, write_csv
from pipelines.training.loop import fit
from pipelines.training.optimizers import LineSearchOptimizer
from pipelines.training.ranks import Ranks
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.training.signals import StopRequest, stop_on_signals
from pipelines.training.state import Point
from pipelines.workspace import Aside, Workspace
from storage.atomic import write_atomically
from storage.errors import DataError, Interrupted, ParamsError

FOLDER = "compare"  # in the recipe's state folder
POINTS = 50  # of each curve


@dataclass(frozen=True)
class Entry:
    """How an optimiser did. `metrics`: of the val split at the end; `passes` over batches, more than one a step with a
    line search; `failed`: why it ended early, else empty."""

    name: str
    lr: float
    weight_decay: float
    why: str
    curve: list[Point]
    metrics: dict[str, float]
    passes: int
    seconds: float
    failed: str = ""

    @property
    def train_loss(self) -> float:
        return self.curve[-1]["train_loss"] if self.curve else float("nan")


def compare_optimizers(
    ws: Workspace, only: list[str] | None = None, steps: int | None = None, out: Path | None = None
) -> list[Entry]:
    """Train the recipe of `ws` for `steps` (None: as many as it has) with each optimiser, or `only` some, on one rank.

    Leaves a parent run in MLflow with a child each, a table and a plot there and in `out` (None: the recipe's state
    folder). The recipe's outs stay as they are. Returns the entries, the best first. Raises ParamsError for an unknown
    name, Interrupted after a signal.
    """
    names = _known(only)
    out = out or ws.state / FOLDER
    trains = {name: _train(ws, name, CONTENDERS[name], steps) for name in names}
    entries: list[Entry] = []
    with stop_on_signals(StopRequest()) as stop, open_run(ws, name="compare optimizers") as parent:
        parent.set_tags({"comparison": "optimizers"})
        with _bar(ws, trains) as advance:
            for name, train in trains.items():
                advance(0, note=name)
                entry = _one(ws, name, train, stop, advance)
                entries.append(entry)
                _record(ws, entry, train, parent.id)
        entries.sort(key=lambda entry: (bool(entry.failed), entry.metrics.get("val_loss", entry.train_loss)))
        _write(entries, out)
        parent.log_params({"optimizers": ",".join(names), "steps": entries[0].curve[-1]["step"]})
        for entry in entries:
            parent.log_metrics({f"{entry.name}.{k}": v for k, v in entry.metrics.items()})
        for file in ("optimizers.csv", "optimizers.md", "optimizers.png"):
            parent.log_artifact(out / file, "comparison")
        show(entries)
        say(f"table and plot: {out / 'optimizers.md'}, {out / 'optimizers.png'}")
        if parent.url:
            say(f"runs: {parent.url}")
    return entries


def _known(only: list[str] | None) -> list[str]:
    for name in only or []:
        if name not in CONTENDERS:
            raise ParamsError(f"--only {name}: no such optimiser{suggestion(name, list(CONTENDERS))}")
    return [name for name in CONTENDERS if not only or name in only]


def _train(ws: Workspace, name: str, contender: Contender, steps: int | None) -> Train:
    """The recipe's own training but for the optimiser, on one rank, without checkpoints and early stopping."""
    train = ws.params.train
    decay = train.weight_decay if contender.weight_decay is None else contender.weight_decay
    changes: dict[str, Any] = {
        "optimizer": name, "lr": contender.lr, "weight_decay": decay, "betas": None, "ema": None, "nonfinite": "stop",
        "patience": None, "ranks": 1, "parallel": {}, "checkpoints": {},
        "network": {}, "entrypoint": None, "args": {},
        "precision": "auto" if train.precision == "fp16" else train.precision,
    }  # fmt: skip
    if steps is not None:
        changes |= {"steps": steps, "epochs": None}
    return Train.model_validate(train.model_dump() | changes)


@contextmanager
def _bar(ws: Workspace, trains: dict[str, Train]) -> Iterator[Advance]:
    steps = {train.steps for train in trains.values()}
    total = None if None in steps else sum(train.steps or 0 for train in trains.values())
    with progress("compare", total, "steps") as advance:
        yield advance


def _one(ws: Workspace, name: str, train: Train, stop: StopRequest, advance: Advance) -> Entry:
    folder = _scratch(ws)
    try:
        # Neither checkpoints nor evaluations on the way: what is compared is the steps.
        train = train.model_copy(update={"checkpoint_every": 1 << 40, "eval_every": 1 << 40})
        aside = Aside(folder, ws.project, ws.params.model_copy(update={"train": train}), ws)
        with open_session(aside, Ranks()) as session:
            every = max(1, session.steps // POINTS)
            logged = session.params.train.model_copy(update={"log_every": every})
            session.params = session.params.model_copy(update={"train": logged})
            return _fit(session, name, stop, advance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit(s: Session, name: str, stop: StopRequest, advance: Advance) -> Entry:
    failed, began = "", time.perf_counter()
    try:
        fit(s, Reporter(None, advance, "steps", s.steps), stop)
    except DataError as error:
        failed = str(error).partition(";")[0].partition(", of the")[0]
    except Interrupted as error:
        raise Interrupted("The comparison was stopped; start it again for all of it.", error.signum) from error
    seconds = time.perf_counter() - began
    optimizer = s.optimizer
    passes = optimizer.evaluations if isinstance(optimizer, LineSearchOptimizer) else s.state.step
    metrics = {k: v for k, v in s.state.val_curve[-1].items() if k != "step"} if s.state.val_curve else {}
    train = s.params.train
    curve = s.state.train_curve
    return Entry(
        name, train.lr, train.weight_decay, CONTENDERS[name].why, curve, metrics, passes, seconds, failed
    )  # fmt: skip


def _scratch(ws: Workspace) -> Path:
    parent = ws.state / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".run.", dir=parent))


def _record(ws: Workspace, entry: Entry, train: Train, parent: str | None) -> None:
    """A child run with its curve."""
    if parent is None:
        return
    from pipelines.training.rank import flat

    with open_run(ws, name=entry.name) as run:
        run.set_tags({"mlflow.parentRunId": parent, "comparison": "optimizers", "optimizer": entry.name})
        run.log_params(flat({"train": train.model_dump()}) | {"stream.batch_size": ws.params.stream.batch_size})
        for point in entry.curve:
            run.log_metrics({k: v for k, v in point.items() if k != "step"}, step=int(point["step"]))
        run.log_metrics({**entry.metrics, "passes": entry.passes, "seconds": entry.seconds})


def _write(entries: list[Entry], out: Path) -> None:
    from pipelines.evaluation.plots import png

    write_atomically(out / "optimizers.csv", write_csv(entries))
    write_atomically(out / "optimizers.md", markdown(entries).encode())
    write_atomically(out / "optimizers.png", png(draw(entries)))
