"""The evaluate stage: data/model, data/shards → metrics/evaluate.json, plots/evaluate/, and the model's MLflow run."""

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from pipelines.console.progress import say
from pipelines.params.schema.flat import numbers
from pipelines.workspace import Workspace
from storage.atomic import write_atomically

if TYPE_CHECKING:
    from pipelines.evaluation.result import Evaluation, Row

FOLDER = "evaluate"


def evaluate(ws: Workspace) -> dict[str, Any]:
    """Measure the model in data/model on `evaluate.split`. Returns what metrics/evaluate.json holds.

    Raises FormatError without a model or shards, ParamsError when it was trained with other code than today's,
    DataError for an empty split or data of another kind.
    """
    zone = ws.zone("shards")
    manifest = zone.manifest()
    from pipelines.evaluation.measure import measure
    from pipelines.evaluation.plots import png
    from pipelines.models import Own, load_model
    from pipelines.runtime.own_code import AGAIN, comparison

    compare = comparison(ws, f"The model in {ws.model}", AGAIN)
    model, config = load_model(ws.model, Own.of(ws.params, ws.root, ws.project, compare=compare))
    result = measure(model, config, zone, manifest, ws.params)
    files = {f"{name}.png": png(draw()) for name, draw in result.figures.items()}
    files |= {f"{name}.csv": _csv(rows) for name, rows in result.tables.items()}
    for name, content in files.items():
        write_atomically(ws.plots(f"{FOLDER}/{name}"), content)
    for old in ws.plots(FOLDER).iterdir():  # of an evaluation with other tables: DVC removes them, a command alone not
        if old.is_file() and old.name not in files:
            old.unlink()
    write_atomically(ws.metrics("evaluate"), (json.dumps(result.metrics, indent=2) + "\n").encode())
    where = _record(ws, result)
    say(_summary(result.metrics) + (f"\n  run: {where}" if where else ""))
    return result.metrics


def _record(ws: Workspace, result: "Evaluation") -> str | None:
    """Add figures and metrics to the run that trained the model. Returns how to open it."""
    from pipelines.tracking import open_run, recorded_run_id
    from pipelines.tracking.names import constants, result_name, results

    split = result.metrics["split"]
    with open_run(ws, run_id=recorded_run_id(ws)) as run:
        figures = numbers(result.metrics)
        run.log_metrics({result_name(split, name): value for name, value in results(figures).items()})
        run.set_tags({f"{split}.{name}": text for name, text in constants(figures).items()})
        run.describe(ws, metrics=result.metrics)
        zone = ws.zone("shards")
        run.log_dataset(zone.manifest(), zone, split)
        run.log_artifact(ws.plots(FOLDER), f"plots/{FOLDER}")
        return run.url


def _summary(metrics: dict[str, Any]) -> str:
    from pipelines.evaluation.measure import HEADLINES

    metric = next(name for name in HEADLINES[metrics["task"]] if name in metrics)
    others = ", ".join(f"{name} {block[metric]:.4f}" for name, block in metrics["baseline"].items())
    own = ", ".join(f"{name} {block[metric]:.4f}" for name, block in metrics.get("domains", {}).items())
    return (
        f"evaluate: {metric} {metrics[metric]:.4f} on split {metrics['split']} (baselines: {others})\n"
        + (f"  by domain: {own}\n" if own else "")
        + f"  data version {metrics['manifest'][:12]}"
    )


def _csv(rows: list["Row"]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
