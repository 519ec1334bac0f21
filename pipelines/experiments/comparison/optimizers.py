"""Train a recipe with each optimiser, and say how they did: a table, a plot, MLflow runs."""

from pathlib import Path
from typing import Any

from pipelines.console.progress import progress
from pipelines.experiments.comparison.contest import Contest, Entry, chosen, keep, plain
from pipelines.experiments.comparison.optimizer_settings import CONTENDERS
from pipelines.experiments.comparison.report import Line, Picture, Row, metric_cells
from pipelines.experiments.comparison.trial import run_trial
from pipelines.params import Train
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.workspace import Workspace


def compare_optimizers(
    ws: Workspace, only: list[str] | None = None, steps: int | None = None, out: Path | None = None
) -> list[Entry]:
    """Train the recipe of `ws` for `steps` (None: as many as it has) with each optimiser, or `only` some, on one rank.

    Leaves a parent run in MLflow with a child each, a table and a plot there and in `out` (None: the recipe's state
    folder). The recipe's outs stay as they are. Returns the entries, the best first. Raises ParamsError for an unknown
    name, Interrupted after a signal: then the same call goes on.
    """
    trains = {name: _train(ws, name, steps) for name in chosen(only, list(CONTENDERS), "optimiser")}
    lengths = [train.steps for train in trains.values() if train.steps is not None]
    total = sum(lengths) if len(lengths) == len(trains) else None
    with (
        stop_on_signals(StopRequest()) as stop,
        Contest(ws, "optimizers", trains, out) as contest,
    ):
        with progress("compare", total, "steps") as advance:
            for name, train in contest.missing().items():
                advance(0, note=name)
                keep(contest.folder, name, run_trial(ws, train, Ranks(), stop, advance))
        entries = contest.entries()
        contest.close(_rows(entries, trains), Picture([_line(entry) for entry in entries], *_AXES))
    return entries


def _train(ws: Workspace, name: str, steps: int | None) -> Train:
    """The recipe's own training but for the optimiser, on one rank."""
    train, contender = ws.params.train, CONTENDERS[name]
    changes: dict[str, Any] = {
        "optimizer": name, "lr": contender.lr, "betas": None, "ranks": 1,
        "weight_decay": train.weight_decay if contender.weight_decay is None else contender.weight_decay,
        "precision": "auto" if train.precision == "fp16" else train.precision,
    }  # fmt: skip
    if steps is not None:
        changes |= {"steps": steps, "epochs": None}
    return plain(train, **changes)


_AXES = "passes over a batch", "train loss"


def _line(entry: Entry) -> Line:
    """By passes too, of which a line search takes several a step."""
    course = entry.course
    steps = [point["step"] for point in course.train]
    ratio = course.passes / steps[-1] if steps else 1.0
    return Line(entry.name, steps, [step * ratio for step in steps], [point["train_loss"] for point in course.train])


def _rows(entries: list[Entry], trains: dict[str, Train]) -> list[Row]:
    names = list(next((entry.metrics for entry in entries if entry.metrics), {}))
    rows = []
    for entry in entries:
        train, course = trains[entry.name], entry.course
        row = {"optimizer": entry.name, "lr": f"{train.lr:g}", "weight decay": f"{train.weight_decay:g}"}
        row |= {"train loss": f"{entry.train_loss:.4f}"} | metric_cells(entry.metrics, names)
        row |= {"passes": str(course.passes), "seconds": f"{course.seconds:.1f}"}
        rows.append(row | {"reason of the rate": course.failed or CONTENDERS[entry.name].why})
    return rows
