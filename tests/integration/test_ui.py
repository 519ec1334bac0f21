"""`shardline ui`: the runs are shown, the store's password is not; links lead to where it listens."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import Run
from support.servers import answers, free_port, wait_for

from pipelines.tracking.pages.links import page, running_ui
from pipelines.workspace import Workspace

SECRET = "S3cr3tOfTheStore"


@contextmanager
def ui(project: Path, environment: dict[str, str], port: int) -> Iterator[psutil.Process]:
    """Running, until the end of the block; all it says goes to ui.log."""
    with (project / "ui.log").open("wb") as log:
        command = ["shardline", "ui", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/", 200), f"the UI, see {project}/ui.log")
            yield psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_store_s_password_is_in_no_command_line_and_no_line_that_is_printed(
    project: Path, environment: dict[str, str]
) -> None:
    """SQLite takes a password that it doesn't need, so that a real UI runs over a store with a secret."""
    store = f"sqlite:///file:{project}/runs.db?mode=rwc&uri=true&password={SECRET}"
    with ui(project, environment | {"MLFLOW_TRACKING_URI": store}, free_port()) as process:
        commands = {one.pid: one.cmdline() for one in [process, *process.children(recursive=True)]}
    assert len(commands) > 1
    assert [line for line in commands.values() if SECRET in " ".join(line)] == []
    said = (project / "ui.log").read_text()
    assert "password=***" in said
    assert SECRET not in said


@pytest.mark.parametrize("scheme", ["postgres", "mongodb"])
def test_a_store_that_mlflow_does_not_take_is_named_without_its_password(scheme: str, project: Path, run: Run) -> None:
    """MLflow itself would print all of it."""
    store = {"MLFLOW_TRACKING_URI": f"{scheme}://me:{SECRET}@127.0.0.1:1/db"}
    done = run("shardline", "ui", cwd=project, env=store, code=2)
    assert f"{scheme}://me:***@127.0.0.1:1/db" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert ("Write postgresql://" in done.stderr) == (scheme == "postgres")


def test_links_have_the_port_of_the_ui_that_runs(project: Path, environment: dict[str, str]) -> None:
    ws, port = Workspace.open(project), free_port()
    asleep = page(ws, "models")
    assert (str(asleep), asleep.asleep) == ("make ui, then http://127.0.0.1:5000/#/models", True)
    with ui(project, environment, port) as process:
        assert str(page(ws, "models")) == f"http://127.0.0.1:{port}/#/models"
        assert (project / ".shardline" / "mlflow" / "mlflow.db").is_file()
        assert not any("sqlite" in part for part in process.cmdline())
    assert running_ui(project) is None  # killed: nothing has to be tidied up
    assert page(ws, "models") == asleep
