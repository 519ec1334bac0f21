"""What comparisons share: entries that outlive an interruption, a parent run with children, table and plot."""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.console.progress import say
from pipelines.evaluation.plots import png
from pipelines.experiments.comparison.report import Picture, Row, draw, markdown, show, write_csv
from pipelines.experiments.comparison.trial import Course
from pipelines.params import Train, suggestion
from pipelines.params.schema.flat import flat
from pipelines.tracking import open_run
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.digest import digest_json
from storage.errors import ParamsError

FOLDER = "compare"  # in the recipe's state folder


@dataclass(frozen=True)
class Entry:
    """How a contender did: `train_loss` of the last steps; `metrics` of the val split at the end; the rest as
    `Course`."""

    name: str
    course: Course

    @property
    def train_loss(self) -> float:
        return self.course.train[-1]["train_loss"] if self.course.train else float("nan")

    @property
    def metrics(self) -> dict[str, float]:
        last = self.course.val[-1] if self.course.val else {}
        return {name: value for name, value in last.items() if name not in ("step", "sent_mb")}

    @property
    def loss(self) -> float:
        """By which entries are ranked."""
        return self.metrics.get("val_loss", self.train_loss)


class Contest:
    """A comparison of `kind` ("optimizers"), each contender with its own parameters. A context manager: inside,
    contenders are trained, and each course is kept (`keep`), so that the same comparison goes on after an interruption;
    `close` tells of all."""

    def __init__(self, ws: Workspace, kind: str, trains: Mapping[str, Train], out: Path | None) -> None:
        self.ws, self.kind, self.trains, self.out = ws, kind, dict(trains), out or ws.state / FOLDER
        params = ws.params
        key = digest_json({
            "manifest": ws.zone("shards").manifest().digest, "seed": params.seed,
            "stream": params.stream.model_dump(), "model": params.model.model_dump(),
            "trains": {name: train.model_dump() for name, train in self.trains.items()},
        })[:16]  # fmt: skip
        self.folder = ws.state / FOLDER / f".{kind}-{key}"
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parent = self._inside.enter_context(open_run(self.ws, name=f"compare {self.kind}", kind="comparison"))
        self.parent.set_tags({"comparison": self.kind})
        if kept := len(self.trains) - len(self.missing()):
            say(f"going on: {kept} of {len(self.trains)} trainings are there")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.__exit__(kind, error, trace)

    def missing(self) -> dict[str, Train]:
        """The contenders that haven't run yet."""
        return {name: train for name, train in self.trains.items() if not kept_file(self.folder, name).is_file()}

    def entries(self) -> list[Entry]:
        """All of them, the best first."""
        entries = [Entry(name, load_course(self.folder, name)) for name in self.trains]
        return sorted(entries, key=lambda entry: (bool(entry.course.failed), entry.loss))

    def close(self, rows: list[Row], picture: Picture) -> None:
        """Write table and plot, log the runs, tell people, and forget the courses. `rows`: one for each entry."""
        entries, files = self.entries(), {suffix: self.out / f"{self.kind}.{suffix}" for suffix in ("csv", "md", "png")}
        self._write(files, rows, picture)
        for entry in entries:
            self._record(entry)
            self.parent.log_metrics({f"{k}/{entry.name}": v for k, v in entry.metrics.items()})
        steps = max(int(entry.course.train[-1]["step"]) for entry in entries if entry.course.train)
        self.parent.log_params({self.kind: ",".join(self.trains), "steps": steps})
        for file in files.values():
            self.parent.log_artifact(file, "comparison")
        shutil.rmtree(self.folder)
        show(rows)
        say(f"table and plot: {files['md']}, {files['png']}")
        if self.parent.url:
            say(f"runs: {self.parent.url}")

    def _write(self, files: Mapping[str, Path], rows: list[Row], picture: Picture) -> None:

        write_atomically(files["csv"], write_csv(rows))
        write_atomically(files["md"], markdown(rows).encode())
        write_atomically(files["png"], png(draw(picture)))

    def _record(self, entry: Entry) -> None:
        """A child run with its curves."""
        if self.parent.id is None:
            return
        course, train = entry.course, self.trains[entry.name]
        with open_run(self.ws, name=entry.name, kind="comparison") as run:
            about = {"mlflow.parentRunId": self.parent.id, "comparison": self.kind}
            run.set_tags(about | {self.kind.removesuffix("s"): entry.name})
            run.log_params(
                flat({"train": train.model_dump()}) | {"stream.batch_size": self.ws.params.stream.batch_size}
            )
            for point in [*course.train, *course.val]:
                run.log_metrics({k: v for k, v in point.items() if k != "step"}, step=int(point["step"]))
            costs = {"passes": course.passes, "seconds": course.seconds, "sent_mb": course.sent_mb}
            run.set_tags({name: f"{value:.6g}" for name, value in costs.items()})


def chosen(only: list[str] | None, names: list[str], what: str) -> list[str]:
    """`names`, or just those that `only` has, in their order. Raises ParamsError for a name that isn't there."""
    for name in only or []:
        if name not in names:
            raise ParamsError(f"--only {name}: no such {what}{suggestion(name, names)}")
    return [name for name in names if not only or name in only]


def plain(train: Train, **changes: Any) -> Train:
    """The recipe's own training but for `changes`, with nothing that would stop it early or that takes another layout
    of ranks than copies."""
    settings: dict[str, Any] = {
        "ema": None, "nonfinite": "stop", "patience": None, "parallel": {}, "communication": {}, "checkpoints": {},
        "entrypoint": None, "args": {}, "eval_every": 100, "checkpoint_every": 100,
    }  # fmt: skip
    return Train.model_validate(train.model_dump() | settings | changes)


def kept_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def keep(folder: Path, name: str, course: Course) -> None:
    """Note how a contender did."""
    write_atomically(kept_file(folder, name), json.dumps(asdict(course)).encode())


def load_course(folder: Path, name: str) -> Course:
    return Course(**json.loads(kept_file(folder, name).read_text()))
