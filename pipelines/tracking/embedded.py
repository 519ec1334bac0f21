"""The store that a project has of its own: a SQLite file with its artifacts beside it. It moves with its folder."""

import fcntl
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipelines.console.progress import progress
from pipelines.workspace import STATE
from storage.atomic import sync_folder

SQLITE = "sqlite:///"
ARTIFACTS = "artifacts"  # the folder beside the database
_PATIENCE = 30.0  # seconds for another process to let go of the database
#: Where MLflow keeps absolute places of artifacts: table → columns.
_PLACES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def embedded_uri(state: Path) -> str:
    """MLflow's URI of the store of a project whose state folder is `state`."""
    return f"{SQLITE}{state / 'mlflow' / 'mlflow.db'}"


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server's."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifacts_beside(file: Path) -> str:
    """Where the artifacts of a database go: beside it, rather than into the current folder."""
    return (file.resolve().parent / ARTIFACTS).as_uri()


def has_run(file: Path, run_id: str) -> str | None:
    """The experiment of run `run_id` in the database, where it is there and not deleted. Takes a millisecond, where
    MLflow takes two seconds to be imported."""
    if not file.is_file():
        return None
    question = "SELECT experiment_id FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as database:
            found = database.execute(question, [run_id]).fetchone()
    except sqlite3.Error:  # no database of MLflow's
        return None
    return str(found[0]) if found else None


def relocate(file: Path) -> int:
    """Let the store in `file` find its artifacts beside it, where its folder was moved or copied; MLflow keeps absolute
    places. Returns how many it changed. Only the places of a project's own store are meant."""
    here, changed = artifacts_beside(file), 0
    if file.resolve().parts[-3:-1] != (STATE, "mlflow") or not (file.parent / ARTIFACTS).is_dir():
        return 0
    there = re.compile(rf"((?:file://)?/(?:.*/)?{re.escape(STATE)}/mlflow/{ARTIFACTS})(?=/|$)")
    with closing(sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)) as database:
        known = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        old = {
            found[1]
            for (place,) in (database.execute("SELECT artifact_location FROM experiments") if known else [])
            if place and (found := there.match(place)) and found[1] != here
        }
        if not old:
            return 0
        database.execute("BEGIN IMMEDIATE")
        for table, columns in _PLACES.items():
            for column in columns if table in known else []:
                for place in old:
                    changed += _replace(database, table, column, place, here)
        database.execute("COMMIT")
    return changed


def _replace(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """In the places that begin with the folder `old`."""
    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"  # noqa: S608 - our own names
    return database.execute(change, [new, len(old) + 1, old, len(old) + 1, f"{old}/"]).rowcount


def create_database(file: Path) -> None:
    """Make an MLflow database in `file` unless it is there: whole or not at all, once for many processes.

    MLflow runs all its migrations on a new database (2 to 4 s); interrupted, they could leave one that it refuses.
    """
    if file.exists():
        return
    import mlflow.db

    file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(file.with_name(f".{file.name}.lock")):
        if file.exists():
            return
        folders = tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent)
        with folders as folder, progress("a new MLflow store", None):
            fresh = Path(folder) / file.name  # not `atomic_path`, whose lock on a network's disk would be SQLite's, too
            migrate: Any = mlflow.db.upgrade.callback  # what `mlflow db upgrade URL` calls
            with _unsynced(fresh):
                migrate(f"{SQLITE}{fresh}")
            with fresh.open("rb+") as made:
                os.fsync(made.fileno())
            fresh.replace(file)
            sync_folder(file.parent)


@contextmanager
def _unsynced(file: Path) -> Iterator[None]:
    """SQLite doesn't wait for the disk after each transaction on `file`, which nobody sees before it is whole."""
    from sqlalchemy import Engine, event

    def hasten(dialect: Any, record: Any, arguments: list[Any], options: Any) -> Any:
        if dialect.name != "sqlite" or Path(arguments[0]) != file:
            return None  # somebody else's
        connection = dialect.connect(*arguments, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    event.listen(Engine, "do_connect", hasten)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", hasten)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when its holder dies."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
