"""One MLflow run. Nothing here raises because of MLflow: training goes on without it, and says so once."""

import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pipelines.tracking.lineage import dataset_input, lineage_tags
from pipelines.tracking.names import grouped, mlflow_name
from pipelines.tracking.outbox import Call, Outbox
from pipelines.tracking.pages.descriptions import NOTE, experiment_note, run_note
from pipelines.tracking.pages.links import page, run_path
from pipelines.tracking.pages.run_names import (
    CHANGED,
    KIND,
    PREVIOUS,
    TRAINING,
    VALUE_LIMIT,
    changes,
    params_of,
    previous_training,
    run_name,
    run_params,
)  # fmt: skip
from pipelines.tracking.store import Store, cause, connect, warn
from pipelines.tracking.system_metrics import SystemMetrics
from pipelines.workspace import Workspace
from storage.errors import Interrupted, TrackingError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.redact import mask, without_login

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run as MlflowRun

Status = Literal["FINISHED", "FAILED", "KILLED"]
PARAMS_IN_BATCH = TAGS_IN_BATCH = 100  # MLflow's limits of a request


@dataclass
class Run:
    """A run, or (id None) the stand-in whose methods do nothing. Use as a context manager, or call `close()`.

    All is sent in the background and in order, but for files that their store doesn't take at once; files handed over
    must stay until `close()` or `flush()`.
    """

    recipe: str
    tracking_uri: str
    id: str | None = None
    url: str | None = None
    """How to open it: a URL, or `make ui` and where to look."""
    experiment_id: str | None = None
    store: Store | None = None
    reopened: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    """Those that it was opened with."""
    _params: dict[str, str] = field(default_factory=dict, init=False)
    _last_steps: dict[str, int] = field(default_factory=dict, init=False)
    _outbox: Outbox | None = field(default=None, init=False)
    _system: SystemMetrics | None = field(default=None, init=False)
    _ends: bool = field(default=True, init=False)

    def reference(self) -> dict[str, str | None]:
        """What run.json holds, so that later stages find the run."""
        return {"run_id": self.id, "experiment": self.recipe, "tracking_uri": without_login(self.tracking_uri)}

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters by flat name (`train.lr`), without the passwords of URLs. MLflow's are immutable: where a resumed
        run has another value, the new one goes into the tag `changed.<name>`."""
        texts = run_params(values)
        self.set_tags({f"changed.{n}": t for n, t in texts.items() if self._params.get(n, t) != t})
        fresh = {name: text for name, text in texts.items() if name not in self._params}
        self._params |= fresh
        for part in _parts(fresh, PARAMS_IN_BATCH):
            self._send_batch("params", params=_params(part))

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Points of curves at `step`, or single figures, in the groups of the UI: train_loss is train/loss there (see
        `names`). A resumed run skips the steps that it has."""
        if self._outbox is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        last = self._last_steps
        self._outbox.put(
            *(
                Metric(name, float(value), now, step or 0)
                for name, value in ((mlflow_name(grouped(given)), value) for given, value in values.items())
                if step is None or step > last.get(name, -1)
            )
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for part in _parts(dict(tags), TAGS_IN_BATCH):
            self._send_batch("tags", tags=_tags(part))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file, or all of a folder, into `folder` of the run's artifacts."""

        def send(store: Store, id: str) -> None:
            log = store.client.log_artifacts if path.is_dir() else store.client.log_artifact
            log(id, str(path), folder or None)

        self._send(f"artifact {path}", send, file=True)

    def log_figure(self, figure: "Figure", file: str) -> None:
        """A matplotlib figure as `file` (plots/confusion.png); drawn at once, so it may be closed after."""
        if self._outbox is None:
            return
        drawn = io.BytesIO()
        figure.savefig(drawn, format=Path(file).suffix.removeprefix(".") or "png")
        target = Path(file)

        def send(store: Store, id: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / target.name
                local.write_bytes(drawn.getvalue())
                parent = target.parent.as_posix()
                store.client.log_artifact(id, str(local), None if parent == "." else parent)

        self._send(f"figure {file}", send, file=True)

    def log_dataset(self, manifest: Manifest, zone: Zone, context: str) -> None:
        """The data that the run read; `context` is the split: train, test."""
        if self._outbox is None:
            return
        record = dataset_input(self.recipe, manifest, zone, context)
        self._send("dataset", lambda store, id: store.client.log_inputs(id, [record]))

    def describe(self, ws: Workspace, **known: Mapping[str, Any]) -> None:
        """Bring the description up to date; `known` as `run_note` takes it. Only that of a training is ours."""
        if self.experiment_id is not None and self.tags.get(KIND) == TRAINING:
            self.set_tags({NOTE: run_note(ws, self.tags, self.experiment_id, **known)})

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all of it is recorded, at most `timeout` seconds; False when it is not."""
        return self._outbox.flush(timeout) if self._outbox else False

    def close(self, status: Status = "FINISHED") -> None:
        """Send what waits and end the run (one that was finished when it was reopened keeps its end)."""
        system, outbox = self._system, self._outbox
        if system is not None:
            system.stop()
            self._system = None
        if outbox is None:
            return
        if self._ends:
            self._send("the run's end", lambda store, id: store.client.set_terminated(id, status))
        outbox.close()
        self._outbox = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = isinstance(error, (KeyboardInterrupt, Interrupted, SystemExit))
        self.close("FINISHED" if error is None else "KILLED" if killed else "FAILED")

    def _send_batch(self, what: str, **batch: Any) -> None:
        def send(store: Store, id: str) -> None:
            store.client.log_batch(id, **batch)

        self._send(what, send)

    def _send(self, what: str, send: Callable[[Store, str], object], *, file: bool = False) -> None:
        store, id, outbox = self.store, self.id, self._outbox
        if outbox is not None and store is not None and id is not None:
            outbox.put(Call(what, lambda: send(store, id), file))


def open_run(ws: Workspace, *, run_id: str | None = None, name: str | None = None, kind: str | None = None) -> Run:
    """Run `run_id` where the store has it, else a new one, tagged with the workspace's lineage: of this `kind`, and
    called by its recipe and `name`, or, a training, by what changed since the one before.

    An unfinished run that is reopened runs on; a finished one only takes more entries. Without MLflow: a Run
    whose methods do nothing, after one line on stderr.
    """
    run = Run(ws.params.recipe, ws.tracking_uri)
    try:
        _attach(run, ws, connect(ws), run_id, name, kind)
    except TrackingError as error:
        warn(f"{error} The work goes on untracked.")
    except Exception as error:  # whatever MLflow raises, the work goes on
        warn(
            f"MLflow at {without_login(run.tracking_uri)} cannot open a run: {cause(error)}. The work goes on "
            "untracked (setting: MLFLOW_TRACKING_URI)."
        )
    return run


def _attach(run: Run, ws: Workspace, store: Store, run_id: str | None, name: str | None, kind: str | None) -> None:
    found = find_run(store, run_id)
    run.reopened = found is not None
    if found is None:
        found = _create(ws, store, name, kind)
    elif found.info.status == "FINISHED":
        run._ends = False
    elif found.info.status != "RUNNING":
        store.client.update_run(found.info.run_id, status="RUNNING")
    run.id, run.experiment_id, run.store = found.info.run_id, found.info.experiment_id, store
    run.url = str(page(ws, *run_path(found.info.experiment_id, found.info.run_id)))
    run._params, run.tags = dict(found.data.params), dict(found.data.tags)
    run._last_steps = {metric.key: metric.step for metric in found.data._metric_objs}
    id = found.info.run_id
    run._outbox = Outbox(lambda points: store.client.log_batch(id, metrics=points), without_login(store.uri))
    if run._ends and _system_metrics_wanted():
        first = 1 + max((s for n, s in run._last_steps.items() if n.startswith("system/")), default=-1)
        run._system = SystemMetrics(id, store.uri, lambda values, step: run.log_metrics(values, first + step))


def _create(ws: Workspace, store: Store, name: str | None, kind: str | None) -> "MlflowRun":
    """A new run of the recipe's experiment; a training with its description."""
    experiment, tags, recipe = (
        store.experiment(ws.params.recipe, experiment_note(ws)),
        lineage_tags(ws),
        ws.params.recipe,
    )
    called = f"{recipe} {name}" if name else recipe
    if kind is not None:
        tags[KIND] = kind
    if kind == TRAINING:
        before = previous_training(store.client, experiment)
        changed = changes(params_of(ws), tags, before) if before is not None else None
        called = run_name(recipe, tags.get("dvc.experiment"), changed)  # `dvc exp show` has that name, too
        if before is not None:
            tags |= {PREVIOUS: before.info.run_id, CHANGED: ", ".join(changed or [])[:VALUE_LIMIT]}
        tags[NOTE] = run_note(ws, tags, experiment)
    return store.client.create_run(experiment, run_name=called, tags=tags)


def find_run(store: Store, run_id: str | None) -> "MlflowRun | None":
    """The run, where the store has it and it is not deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        found = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return found if found.info.lifecycle_stage == "active" else None


def _system_metrics_wanted() -> bool:
    return os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("true", "1")


def _parts(values: dict[str, str], size: int) -> list[dict[str, str]]:
    items = iter(values.items())
    return [part for _ in range(0, len(values), size) if (part := dict(islice(items, size)))]


def _params(values: dict[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value) for name, value in values.items()]


def _tags(values: dict[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, mask(value)) for name, value in values.items()]
