"""Train a recipe with each way of train.communication, and say what it learnt for the bytes it sent."""

import json
from math import ceil
from pathlib import Path

from pipelines.console.progress import progress
from pipelines.experiments.comparison.communication_settings import Way, ways
from pipelines.experiments.comparison.contest import Contest, Entry, chosen, keep, kept_file, plain
from pipelines.experiments.comparison.report import Line, Picture, Row, metric_cells
from pipelines.experiments.comparison.trial import run_trial
from pipelines.params import Compute, Train
from pipelines.training.launchers import Job, launch
from pipelines.training.process.device import pick_device
from pipelines.training.process.heartbeat import collective_timeout, rest
from pipelines.training.process.process_group import Ranks, joined
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.training.session import samples_in
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.errors import ParamsError

POINTS = 12  # of each val curve
TRAINS = "trains.json"


def compare_communication(
    ws: Workspace, ranks: int = 2, only: list[str] | None = None, steps: int | None = None, local_steps: int = 16,
    out: Path | None = None,
) -> list[Entry]:  # fmt: skip
    """Train the recipe of `ws` on `ranks` ranks of this machine in each way, or `only` some; local copies meet every
    `local_steps`. The rest as `compare_optimizers`."""
    if ranks < 2:
        raise ParamsError(f"--ranks {ranks}: copies that talk are at least two.")
    steps = steps or ws.params.train.steps or _steps(ws)
    known = ways(steps, local_steps)
    names = chosen(only, list(known), "way")
    trains = {
        name: plain(ws.params.train, ranks=ranks, steps=steps, epochs=None, **_communication(known[name]))
        for name in names
    }
    with Contest(ws, "communication", trains, out) as contest:
        if contest.missing():
            every = local_steps * max(1, round(steps / local_steps / POINTS))
            _train_all(ws, trains, contest.folder, every)
        entries = contest.entries()
        contest.close(
            _rows(entries, known), Picture([_line(entry) for entry in entries], "MB sent by a rank", _loss(entries))
        )
    return entries


def _communication(way: Way) -> dict[str, object]:
    local = int(way.communication.get("local_steps", 1))
    return {"communication": way.communication, "eval_every": local, "checkpoint_every": local}


def _steps(ws: Workspace) -> int:
    """Of a recipe that counts in epochs."""
    params, manifest = ws.params, ws.zone("shards").manifest()
    seq_len = params.stream.seq_len if manifest.header["kind"] == "tokens" else None
    epoch = ceil(samples_in(manifest, "train", seq_len) / params.stream.batch_size)
    return ceil(float(params.train.epochs or 0) * epoch)


def _train_all(ws: Workspace, trains: dict[str, Train], folder: Path, eval_every: int) -> None:
    """Start the ranks once, for all trainings whose course isn't in `folder` yet."""
    write_atomically(folder / TRAINS, json.dumps({name: train.model_dump() for name, train in trains.items()}).encode())
    params = ws.params
    first = next(iter(trains.values()))
    changes = {"compute": on_this_machine(params.compute), "train": first}
    here = Workspace(ws.root, ws.project, params.model_copy(update=changes))
    args = {"folder": str(folder), "eval_every": eval_every}
    launch(Job(here, first.ranks, f"{__name__}:train_ways", args))


def on_this_machine(compute: Compute) -> Compute:
    """The same but for what concerns other machines and new starts."""
    changes = {"launcher": "torchrun", "nodes": 1, "min_ranks": None, "max_ranks": None, "max_restarts": 0}
    return compute.model_copy(update=changes)


def train_ways(ws: Workspace, ranks: Ranks, *, folder: str, eval_every: int) -> None:
    """What each rank does: the trainings one after the other, each kept in `folder` by rank 0. Raises Interrupted."""
    place, params = Path(folder), ws.params
    trains = {n: Train.model_validate(values) for n, values in json.loads((place / TRAINS).read_text()).items()}
    device = pick_device(params.train.device, ranks.local_rank, ranks.local_world)
    with stop_on_signals(StopRequest()) as stop, joined(ranks, device, collective_timeout(params.compute)):
        missing = ranks.share([name for name in trains if not kept_file(place, name).is_file()])
        total = sum(trains[name].steps or 0 for name in missing)
        with progress("compare", total if ranks.leads else None, "steps") as advance:
            for name in missing:
                advance(0, note=name)
                course = run_trial(ws, trains[name], ranks, stop, advance, eval_every=eval_every)
                if ranks.leads:
                    keep(place, name, course)
        rest()


def _loss(entries: list[Entry]) -> str:
    """The val loss is of the mean of the copies; without a val split there is only that of the copies by themselves."""
    return "val loss" if any(entry.course.val for entry in entries) else "train loss"


def _line(entry: Entry) -> Line:
    course = entry.course
    if course.val:
        points = course.val
        return Line(
            entry.name, [p["step"] for p in points], [p["sent_mb"] for p in points], [p["val_loss"] for p in points]
        )
    steps = [point["step"] for point in course.train]
    each = course.sent_mb / steps[-1] if steps else 0.0
    return Line(entry.name, steps, [step * each for step in steps], [point["train_loss"] for point in course.train])


def _rows(entries: list[Entry], known: dict[str, Way]) -> list[Row]:
    names = list(next((entry.metrics for entry in entries if entry.metrics), {}))
    most = max(entry.course.sent_mb for entry in entries)
    rows = []
    for entry in entries:
        way, course = known[entry.name], entry.course
        settings = ", ".join(f"{name}: {value}" for name, value in way.communication.items()) or "–"
        row = {"way": entry.name, "train.communication": settings}
        row |= metric_cells(entry.metrics, names) | {"train loss": f"{entry.train_loss:.4f}"}
        row |= {"MB sent": f"{course.sent_mb:.1f}", "of the most": f"{course.sent_mb / most:.1%}"}
        row |= {"seconds": f"{course.seconds:.1f}", "what it is": course.failed or way.why}
        rows.append(row)
    return rows
