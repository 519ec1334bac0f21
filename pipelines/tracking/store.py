"""The MLflow store that a workspace uses: an embedded SQLite file, or what MLFLOW_TRACKING_URI names."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.tracking.embedded import artifacts_beside, create_database, database_of, relocate
from pipelines.tracking.pages.descriptions import NOTE
from pipelines.workspace import Workspace
from storage.atomic import full_disk
from storage.errors import TrackingError
from storage.redact import mask, without_login

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: A server that does not answer is given up after two attempts of 5 s. What the environment says wins.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
PATIENCE = "60"  # seconds for a transfer of a model

#: MLflow's error codes that come from the request itself, so that sending it again would not help.
_OWN_FAULT = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered: `client` speaks to `uri`; `artifact_root` None: the server chooses."""

    client: "MlflowClient"
    uri: str
    artifact_root: str | None

    def experiment(self, name: str, note: str = "") -> str:
        """The id of experiment `name`, created at first use; `note` describes it, unless somebody did."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            from mlflow.exceptions import MlflowException

            location = f"{self.artifact_root}/{name}" if self.artifact_root else None
            try:
                tags = {"mlflow.experimentKind": "custom_model_development", NOTE: note}  # the UI's pages for training
                return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
            except MlflowException as error:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
        if note and not found.tags.get(NOTE):
            self.client.set_experiment_tag(found.experiment_id, NOTE, note)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def connect(ws: Workspace) -> Store:
    """The workspace's store, once it has answered. Raises TrackingError: store, likely cause, setting."""
    uri = ws.tracking_uri
    if "?" in str(ws.project) and ws.artifact_root:  # the embedded store: SQLite's URL has no way to write it
        raise TrackingError(
            f"MLflow's store cannot lie in {ws.project}: the URL of a SQLite file ends at its first '?'. Rename that "
            "folder, or set MLFLOW_TRACKING_URI."
        )
    try:
        client = _client(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        if full := full_disk(error, database_of(uri)):
            raise TrackingError(str(full)) from error
        raise TrackingError(
            f"MLflow at {without_login(uri)} cannot be used: {cause(error)}. "
            "Start the server, or set MLFLOW_TRACKING_URI to another (unset: a SQLite file in the project)."
        ) from error
    file = database_of(uri)
    return Store(client, uri, ws.artifact_root or (artifacts_beside(file) if file else None))


def _client(uri: str) -> "MlflowClient":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    _silence()
    if (file := database_of(uri)) is not None:
        create_database(file)
        relocate(file)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def patient() -> Iterator[None]:
    """For models on their way: a server that stores a large file answers late. What the user set still counts."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    if before == ENVIRONMENT[name]:
        os.environ[name] = PATIENCE
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def _silence() -> None:
    """Failures are reported by us, once; MLFLOW_LOGGING_LEVEL brings MLflow's own lines back."""
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def transient(error: Exception) -> bool:
    """Whether sending the request again later may help."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in _OWN_FAULT
    local = FileNotFoundError | PermissionError | NotADirectoryError | ImportError  # of the store of artifacts
    return not isinstance(error, local | TypeError | AttributeError | LookupError)


def cause(error: BaseException) -> str:
    """The likely cause of an MLflow failure, in a phrase."""
    text = mask(" ".join(str(error).split()))
    hints = {
        "Connection refused": "nothing listens there (connection refused)",
        "Failed to resolve": "the host's name cannot be resolved",
        "Name or service not known": "the host's name cannot be resolved",
        "timed out": "it does not answer in time (MLFLOW_HTTP_REQUEST_TIMEOUT)",
        "Network is unreachable": "the network is unreachable",
        "No route to host": "there is no route to the host",
        "Remote end closed connection": "the server closed the connection",
        "error code 403": "it refused the request (403): see `mlflow server --allowed-hosts`, and the "
        "credentials MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN",
        "error code 401": "it asks for credentials (401): MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "database is locked": "another process keeps the database locked",
        "unable to open database file": "the database file cannot be opened",
        "readonly database": "the database file is not writable",
        "disk is full": "no space left on the device",
        "No space left": "no space left on the device",
        "No such file": f"no such file: {mask(str(getattr(error, 'filename', None) or text))}",
        "out-of-date database schema": "another version of MLflow wrote it: run `mlflow db upgrade` on it",
    }
    for sign, hint in hints.items():
        if sign.lower() in text.lower():
            return hint
    return f"{type(error).__name__}: {text[:300].rstrip('.')}"


def warn(message: str) -> None:
    print(mask(message), file=sys.stderr, flush=True)
