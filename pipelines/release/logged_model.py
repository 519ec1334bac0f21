"""The package as an MLflow LoggedModel: seen in the UI with signature and input example, linked to its run."""

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.release.fingerprint import METADATA, MODEL, PACKAGE
from pipelines.tracking import Run, lineage_tags
from pipelines.tracking.names import constants, mlflow_name, result_name, results
from pipelines.tracking.store import cause, patient, warn
from pipelines.workspace import Workspace
from storage.redact import without_login

CONSTANTS = 50  # tags of a logged model, at most


def log_package(ws: Workspace, run: Run, folder: Path) -> str | None:
    """Log the package in `folder` to `run` as an MLflow LoggedModel and return its id, which goes into MLmodel too;
    one that the run has already is reused. None when MLflow cannot be reached."""
    if run.store is None or run.id is None or run.experiment_id is None:
        return None
    try:
        return _log(ws, run, folder)
    except Exception as error:  # whatever MLflow raises, the folder counts
        warn(f"MLflow at {without_login(run.tracking_uri)} did not take the model: {cause(error)}.")
        return None


def _log(ws: Workspace, run: Run, folder: Path) -> str:
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    assert run.store is not None
    assert run.id is not None
    assert run.experiment_id is not None
    client = run.store.client
    described = Model.load(str(folder))
    facts = (described.metadata or {})[METADATA]
    logged = _already_logged(run, facts[PACKAGE])
    tags = lineage_tags(ws) | _constants(facts) | {PACKAGE: facts[PACKAGE], MODEL: facts[MODEL]}
    name = ws.registered_model.replace(".", "_")
    model_id = (
        logged
        or client.create_logged_model(run.experiment_id, name, run.id, tags=tags, model_type=facts["task"]).model_id
    )
    described.model_id, described.run_id = model_id, run.id
    described.save(str(folder / "MLmodel"))
    if logged:
        return logged
    with patient():
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run.id, [LoggedModelOutput(model_id, 0)])
    now = int(time.time() * 1000)
    points = [
        Metric(mlflow_name(result_name(facts["split"], name)), value, now, 0, model_id=model_id)
        for name, value in results(facts["metrics"]).items()
    ]
    client.log_batch(run.id, metrics=points)
    return str(model_id)


def _constants(facts: Mapping[str, Any]) -> dict[str, str]:
    """Of the split: baselines and counts."""
    found = constants(facts["metrics"]).items()
    return {mlflow_name(f"{facts['split']}.{name}"): text for name, text in islice(found, CONSTANTS)}


def _already_logged(run: Run, package: str) -> str | None:
    """The run's LoggedModel of the same package; those of a stage that was killed half-way are removed."""
    assert run.store is not None
    client = run.store.client
    found = client.search_logged_models([str(run.experiment_id)], filter_string=f"source_run_id = '{run.id}'")
    for model in found:
        if str(model.status) == "READY" and model.tags.get(PACKAGE) == package:
            return str(model.model_id)
        if str(model.status) == "PENDING":
            client.delete_logged_model(model.model_id)
    return None
