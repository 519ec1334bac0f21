"""The run that made the present model. Its id lies beside the model; the store may be another one by now."""

import json

from pipelines.tracking.embedded import database_of, has_run
from pipelines.tracking.pages.links import Page, is_server, page, run_path
from pipelines.workspace import Workspace
from storage.errors import FormatError, TrackingError
from storage.redact import without_login


def recorded_run_id(ws: Workspace) -> str | None:
    """The run that made data/model, from its run.json; None when it was trained without MLflow. Raises FormatError."""
    file = ws.model / "run.json"
    try:
        value = json.loads(file.read_text()).get("run_id") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{file}: not a run's reference ({error}). Restore it with `dvc checkout`.") from error
    return str(value) if value else None


def recorded_page(ws: Workspace) -> Page | None:
    """Where that run is shown; None where the present store hasn't got it. Raises TrackingError where a server doesn't
    answer."""
    run_id = recorded_run_id(ws)
    if run_id is None:
        return None
    file = database_of(ws.tracking_uri)
    experiment = has_run(file, run_id) if file else _asked(ws, run_id)
    return page(ws, *run_path(experiment, run_id)) if experiment else None


def where_is_the_run(ws: Workspace) -> str:
    """How to open that run, or why one can't."""
    run_id, store = recorded_run_id(ws), without_login(ws.tracking_uri)
    if run_id is None:
        return "not tracked"
    try:
        found = recorded_page(ws)
    except TrackingError:
        return f"{run_id}; {store} does not answer, so it cannot be looked up"
    if found is None:
        setting = "MLFLOW_TRACKING_URI names another store" if is_server(store) else "it was made elsewhere, or deleted"
        return f"{run_id}, which is not in {store}: {setting}"
    return str(found)


def _asked(ws: Workspace, run_id: str) -> str | None:
    """The experiment of the run, on a server."""
    from pipelines.tracking.run import find_run
    from pipelines.tracking.store import connect

    found = find_run(connect(ws), run_id)
    return str(found.info.experiment_id) if found else None
