"""How a person opens a page of MLflow's: of the server, or of the UI that shows the project's own store."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.workspace import STATE, Workspace
from storage.redact import without_login

UI = "http://127.0.0.1:5000"  # of `make ui`, unless it is told another port
_FILE = "ui"  # beside the store: the address of the UI that runs, locked by it as long as it does


@dataclass(frozen=True)
class Page:
    """Its `url`, and whether `make ui` must be run first."""

    url: str
    asleep: bool = False

    def __str__(self) -> str:
        return f"make ui, then {self.url}" if self.asleep else self.url


def page(ws: Workspace, *path: str) -> Page:
    """Where `path` is shown: on the server, in the UI that runs, or in the one that `make ui` will start."""
    where = "#/" + "/".join(path)
    if is_server(ws.tracking_uri):
        return Page(f"{without_login(ws.tracking_uri).rstrip('/')}/{where}")
    running = running_ui(ws.project)
    return Page(f"{running or UI}/{where}", asleep=running is None)


def run_path(experiment_id: str, run_id: str) -> tuple[str, ...]:
    return "experiments", experiment_id, "runs", run_id


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def announce_ui(project: Path, url: str) -> None:
    """Note that this process, and what it becomes, is the project's UI at `url`. The first one of a project counts."""
    file = _file(project)
    file.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(held, True)  # the lock ends with the process, not with an exec
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another UI, or a file system without locks
        os.close(held)
        return
    os.ftruncate(held, 0)
    os.write(held, url.encode())


def running_ui(project: Path) -> str | None:
    """The address of the project's UI, if one runs on this machine."""
    try:
        with _file(project).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or None
    except OSError:
        pass
    return None


def _file(project: Path) -> Path:
    return project / STATE / "mlflow" / _FILE
