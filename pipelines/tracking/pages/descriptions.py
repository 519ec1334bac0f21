"""What MLflow's pages say in words (Markdown). Links begin with `#`: they lead through whatever address and port the
reader came by."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipelines.params.release import Gate
from pipelines.tracking.pages.links import run_path
from pipelines.tracking.pages.run_names import CHANGED, PREVIOUS
from pipelines.workspace import Workspace
from storage.redact import mask

NOTE = "mlflow.note.content"  # the tag that the UI shows as a description


def run_note(
    ws: Workspace, tags: Mapping[str, str], experiment_id: str, *, metrics: Mapping[str, Any] | None = None,
    promotion: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Of a training: its data, what changed, the result against its baseline, the gate's decision, the command.
    `metrics` as metrics/evaluate.json holds them and `promotion` as data/promotion.json, once they are of its model."""
    rows = {}  # what matters most comes first: the UI shows four lines, and the others on request
    if metrics is not None:
        rows["result"] = f"**{result(ws.params.promote.gate, metrics)}** on the {ws.params.evaluate.split} split"
    if promotion is not None:
        rows |= {"gate": decision(promotion), "registered": version_link(promotion["model"], promotion["version"])}
    rows |= {"changed": _changed(tags, experiment_id), "data": _data(ws), "model": f"`{ws.params.model.name}`"}
    rows |= {"command": f"`{command(ws)}`", "code": _code(tags)}
    if url := tags.get("prefect.flow_run_url"):
        rows["Prefect"] = f"[flow run]({url})"
    return table(rows)


def experiment_note(ws: Workspace) -> str:
    """Of a recipe."""
    rows = {
        "sources": ", ".join(f"`{source}`" for source in ws.params.ingest.listed),
        "model": f"`{ws.params.model.name}`",
    }
    rows |= {"gate": gate(ws.params.promote.gate), "command": f"`{command(ws)}`"}
    return f"{ws.params.package.description}\n\n{table(rows)}".strip()


def command(ws: Workspace) -> str:
    """What makes the model again, in the project's folder."""
    return "shardline repro" if ws.root == ws.project else f"shardline repro {ws.root.name}"


def result(gate: Gate, metrics: Mapping[str, Any]) -> str:
    """The metric that the gate judges by, beside its baseline: accuracy 0.9833 (baseline.majority.accuracy 0.1014)."""
    value, baseline = _dig(metrics, gate.metric), _dig(metrics, gate.baseline or "")
    line = f"{gate.metric} {value:.4f}" if isinstance(value, int | float) else f"{gate.metric} not measured"
    return line + (f" ({gate.baseline} {baseline:.4f})" if isinstance(baseline, int | float) else "")


def gate(gate: Gate) -> str:
    """What it asks for, in words."""
    better = "at least" if gate.mode == "max" else "at most"
    parts = [f"{better} {gate.bound:g}"] if gate.bound is not None else []
    parts += [f"better than `{gate.baseline}`"] if gate.baseline else []
    gain = f" by at least {gate.min_gain:g}" if gate.min_gain else ""
    return f"`{gate.metric}`: {', '.join([*parts, f'better than the champion{gain}'])}"


def decision(promotion: Mapping[str, Any]) -> str:
    """What the gate decided, and why."""
    passed = promotion["decision"]["promoted"]
    return f"{'passed' if passed else 'not passed'}: {promotion['decision']['reason']}"


def run_link(experiment_id: str, run_id: str, name: str) -> str:
    return f"[{name}](#/{'/'.join(run_path(experiment_id, run_id))})"


def version_link(model: str, version: int | str) -> str:
    return f"[{model} version {version}](#/models/{model}/versions/{version})"


def table(rows: Mapping[str, str]) -> str:
    """Two columns without a head. Rows without a text are left out."""
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return " ".join(mask(text).replace("|", "\\|").split())


def _data(ws: Workspace) -> str:
    manifest = ws.zone("shards").manifest()
    sizes = [f"{split} {pa.compute.sum(manifest.select(split)['rows']).as_py() or 0:,}" for split in manifest.splits]
    sources = ", ".join(f"`{source}`" for source in ws.params.ingest.listed[:5])
    return f"`{manifest.digest[:12]}` ({', '.join(sizes)} rows), of {sources}"


def _changed(tags: Mapping[str, str], experiment_id: str) -> str:
    if PREVIOUS not in tags:
        return ""
    return f"{tags.get(CHANGED) or 'nothing'}, since {run_link(experiment_id, tags[PREVIOUS], 'the training before')}"


def _code(tags: Mapping[str, str]) -> str:
    if "git.commit" not in tags:
        return ""
    return f"`{tags['git.commit'][:12]}`" + (
        " with changes that are not committed" if tags["git.dirty"] == "true" else ""
    )


def _dig(values: object, name: str) -> object:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
