"""Prefect in tests: a server spoken to by REST, checkouts for the flows to work in, and what they leave running.

Prefect itself is not imported: it takes over the root logger.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from conftest import REPOSITORY, TINY, Run, write_params, write_texts
from servers import wait_for

POOL = "shardline"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Prefect:
    """A running server: `env` is for commands; `log` for what they print."""

    url: str
    env: dict[str, str]
    folder: Path

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A request to the API; again when the server is busy (503), as Prefect's own client does."""
        answers: list[httpx.Response] = []

        def ask() -> bool:
            answers.append(httpx.request(method, f"{self.url}/api/{path}", json=body, timeout=30))
            return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

        wait_for(ask, f"{method} {path}")
        answers[-1].raise_for_status()
        return answers[-1].json() if answers[-1].content else None

    def deployment(self, name: str) -> Any:
        """A deployment by `flow/name`."""
        return self.call("GET", f"deployments/name/{name}")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a flow run; returns its id."""
        id = self.deployment(deployment)["id"]
        return str(self.call("POST", f"deployments/{id}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, flow_run: str) -> str:
        return str(self.call("GET", f"flow_runs/{flow_run}")["state_type"])

    def wait(self, flow_run: str, seconds: float = 200) -> str:
        """The final state of a flow run."""
        wait_for(lambda: self.state(flow_run) in FINAL, f"flow run {flow_run}", seconds)
        return self.state(flow_run)

    def tasks(self, flow_run: str) -> list[dict[str, Any]]:
        """The task runs of a flow run."""
        return list(self.call("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}}))

    def steps(self, flow_run: str) -> list[str]:
        """The flow runs that a flow run started."""
        found = self.call("POST", "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}})
        return [step["id"] for step in found]

    def logs(self, flow_run: str) -> str:
        """All that a flow run logged."""
        found = self.call(
            "POST", "logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        )
        return "\n".join(entry["message"] for entry in found)

    def artifact(self, key: str) -> str:
        """The newest artifact's text."""
        return str(self.call("GET", f"artifacts/{key}/latest")["data"])


@contextmanager
def running(command: list[str], cwd: Path, env: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in the background, ended with all that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        finally:
            for left in [*psutil.wait_procs(below, timeout=5)[1]]:
                left.kill()
            process.kill()
            process.wait()


def make_checkout(folder: Path, run: Run) -> Path:
    """A checkout with the recipe `tiny`, as git would give it; the layers below flows/ are the repository's own."""
    shutil.copytree(REPOSITORY / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "prefect.yaml", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    write_texts(folder / "recipes" / "tiny" / "texts")
    write_params(folder / "recipes" / "tiny", TINY)
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    return folder


@dataclass(frozen=True)
class Deployed:
    """A checkout whose deployments a worker serves."""

    prefect: Prefect
    checkout: Path
    worker: psutil.Process


def has_pool(prefect: Prefect) -> bool:
    return any(pool["name"] == POOL for pool in prefect.call("POST", "work_pools/filter", {}))


@dataclass(frozen=True)
class Nightly:
    """A run of the deployment `pipeline/nightly` by the worker, and the same job done by `shardline repro`."""

    deployed: Deployed
    flow_run: str
    state: str
    by_dvc: Path

    @property
    def recipe(self) -> Path:
        return self.deployed.checkout / "recipes" / "tiny"


def alive_below(folder: Path) -> list[psutil.Process]:
    """The processes that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
