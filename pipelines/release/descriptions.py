"""What MLflow's registry says in words of a model and of its version, and the run of what became of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.release.model_card import WHAT
from pipelines.tracking import Store
from pipelines.tracking.pages.descriptions import NOTE, command, decision, gate, result, run_link, run_note, table
from pipelines.tracking.pages.run_names import KIND, TRAINING
from pipelines.tracking.store import cause, warn
from pipelines.workspace import Workspace
from storage.redact import without_login

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion


def describe_promotion(
    ws: Workspace, store: Store, version: "ModelVersion", facts: Mapping[str, Any], metrics: Mapping[str, float],
    promotion: Mapping[str, Any],
) -> None:  # fmt: skip
    """Describe the model, the version and the run. `facts` as the package states them, `metrics` flat, `promotion` as
    data/promotion.json. Words are no reason to fail: what MLflow refuses is told."""
    client, name = store.client, ws.registered_model
    try:
        run = client.get_run(str(version.run_id))
        client.update_registered_model(name, model_note(ws, facts))
        client.update_model_version(name, version.version, version_note(ws, run, facts, metrics, promotion))
        if run.data.tags.get(KIND) == TRAINING:
            note = run_note(ws, run.data.tags, run.info.experiment_id, metrics=nested(metrics), promotion=promotion)
            client.set_tag(run.info.run_id, NOTE, note)
    except Exception as error:  # whatever MLflow raises
        warn(f"MLflow at {without_login(store.uri)} did not take the descriptions: {cause(error)}.")


def model_note(ws: Workspace, facts: Mapping[str, Any]) -> str:
    """Of the registered model: what it does, what makes it, and what the champion must be."""
    rows = {
        "does": WHAT.get((facts["task"], facts["inputs"]), facts["task"]).lower(),
        "recipe": f"`{ws.params.recipe}`",
    }
    rows |= {"made by": f"`{command(ws)}`", "gate": gate(ws.params.promote.gate)}
    return f"{ws.params.package.description}\n\n{table(rows)}".strip()


def version_note(
    ws: Workspace, run: "MlflowRun", facts: Mapping[str, Any], metrics: Mapping[str, float],
    promotion: Mapping[str, Any],
) -> str:  # fmt: skip
    """Of a version: the result, the run and data it comes from, the gate's decision."""
    return table({
        "result": f"**{result(ws.params.promote.gate, nested(metrics))}** on the {facts['split']} split",
        "run": run_link(run.info.experiment_id, run.info.run_id, run.info.run_name),
        "data": f"`{facts['manifest'][:12]}`",
        "changed": run.data.tags.get("changed", ""),
        "gate": decision(promotion),
    })  # fmt: skip


def nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """{"baseline.majority.accuracy": 0.1} → {"baseline": {"majority": {"accuracy": 0.1}}}."""
    whole: dict[str, Any] = {}
    for name, value in metrics.items():
        *parts, last = name.split(".")
        place = whole
        for part in parts:
            below = place.setdefault(part, {})
            place = below if isinstance(below, dict) else {}
        place[last] = value
    return whole
