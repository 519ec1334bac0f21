"""A real Prefect server and worker, and an empty MLflow database, once a session."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Run
from support.prefect_service import (
    POOL,
    Deployed,
    Nightly,
    Prefect,
    flaky_source,
    has_pool,
    make_checkout,
    running,
    until,
)
from support.servers import answers, free_port, wait_for


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once; tests copy it."""
    from pipelines.tracking.embedded import create_database

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(file)
    return file


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Prefect]:
    """The server."""
    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment | {"PREFECT_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, folder, env, folder / "server.log"):
        wait_for(lambda: answers(f"{url}/api/health", 200), f"the Prefect server, see {folder}/server.log", 120)
        with httpx.Client() as client:
            yield Prefect(url, env | {"PREFECT_API_URL": f"{url}/api"}, folder, client)


@pytest.fixture(scope="session")
def deployed(prefect: Prefect, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Iterator[Deployed]:
    """prefect.yaml, deployed as its comment says, and a worker."""
    folder = tmp_path_factory.mktemp("deployed")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    env = prefect.env | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with flaky_source() as url, running(worker, prefect.folder, env, prefect.folder / "worker.log") as process:
        checkout = make_checkout(folder / "checkout", run, url)
        run("dvc", "remote", "add", "--default", "store", str(folder / "store"), cwd=checkout)
        until(lambda: has_pool(prefect), f"the worker, see {prefect.folder}/worker.log", 120)
        run("prefect", "--no-prompt", "deploy", "--all", cwd=checkout, env=prefect.env)
        yield Deployed(prefect, checkout, psutil.Process(process.pid))


@pytest.fixture(scope="session")
def nightly(deployed: Deployed) -> Nightly:
    """The job done by the worker."""
    flow_run = deployed.prefect.start("pipeline/nightly", recipe="tiny")
    state = deployed.prefect.wait(flow_run)
    assert state == "COMPLETED", deployed.prefect.logs(flow_run)
    return Nightly(deployed, flow_run, state)


@pytest.fixture
def flow(prefect: Prefect, run: Run) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a flow by hand in a checkout, against the server."""

    def call(name: str, *arguments: str, cwd: Path, code: int | None = 0) -> "subprocess.CompletedProcess[str]":
        return run(sys.executable, "-m", f"flows.{name}", *arguments, cwd=cwd, code=code, env=prefect.env)

    return call
