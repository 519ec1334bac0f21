"""Prefect in tests: a server spoken to by REST, checkouts for the flows to work in, and what they leave running.

Prefect itself is not imported: it takes over the root logger.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import psutil
from conftest import REPOSITORY, TINY, Run, add_own_stage, write_params, write_texts

POOL = "shardline"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Ask for `condition` twice a second: every question to the server takes time from the flows."""
    end = time.monotonic() + seconds
    pause = Event()
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        pause.wait(0.5)


@dataclass(frozen=True)
class Prefect:
    """A running server: `env` is for commands; `log` for what they print."""

    url: str
    env: dict[str, str]
    folder: Path
    client: httpx.Client

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A request to the API; again when the server is busy (503, or no answer), as Prefect's own client does."""
        answers: list[httpx.Response] = []

        def ask() -> bool:
            try:
                answers.append(self.client.request(method, f"{self.url}/api/{path}", json=body, timeout=20))
            except httpx.TimeoutException:
                return False
            return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

        until(ask, f"{method} {path}", 120)
        answers[-1].raise_for_status()
        return answers[-1].json() if answers[-1].content else None

    def deployment(self, name: str) -> Any:
        """A deployment by `flow/name`."""
        return self.call("GET", f"deployments/name/{name}")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a flow run; returns its id."""
        id = self.deployment(deployment)["id"]
        once = {"parameters": parameters, "idempotency_key": str(uuid4())}  # asked again, it is the same run
        return str(self.call("POST", f"deployments/{id}/create_flow_run", once)["id"])

    def latest(self, flow: str) -> str:
        """The newest finished run of a flow."""
        finished = {"state": {"type": {"any_": sorted(FINAL)}}}
        which = {"flows": {"name": {"any_": [flow]}}, "flow_runs": finished, "sort": "START_TIME_DESC", "limit": 1}
        return str(self.call("POST", "flow_runs/filter", which)[0]["id"])

    def scheduled(self, deployment: str) -> int:
        """How many runs the server has planned for a deployment."""
        state = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        which = {"deployments": {"id": {"any_": [self.deployment(deployment)["id"]]}}, "flow_runs": state}
        return len(self.call("POST", "flow_runs/filter", which))

    def state(self, flow_run: str) -> str:
        return str(self.call("GET", f"flow_runs/{flow_run}")["state_type"])

    def wait(self, flow_run: str, seconds: float = 200) -> str:
        """The final state of a flow run."""
        until(lambda: self.state(flow_run) in FINAL, f"flow run {flow_run}", seconds)
        return self.state(flow_run)

    def tasks(self, flow_run: str) -> list[dict[str, Any]]:
        """The task runs of a flow run."""
        return list(self.call("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}}))

    def steps(self, flow_run: str) -> dict[str, str]:
        """Name → id of the flow runs that a flow run started."""
        found = self.call("POST", "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}})
        return {step["name"]: step["id"] for step in found}

    def logs(self, flow_run: str) -> str:
        """All that a flow run logged."""
        found = self.call(
            "POST", "logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        )
        return "\n".join(entry["message"] for entry in found)

    def summary(self, flow_run: str) -> str:
        """The text of the summary that a run of the pipeline left."""
        which = {"flow_run_id": {"any_": [flow_run]}, "key": {"like_": "summary-"}}
        return str(self.call("POST", "artifacts/filter", {"artifacts": which})[0]["data"])


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
        with suppress(subprocess.TimeoutExpired):  # how soon Prefect's own processes end is not what is tested
            process.wait(5)
        for left in [*psutil.wait_procs(below, timeout=5)[1]]:
            left.kill()
        process.kill()
        process.wait()


class Flaky(BaseHTTPRequestHandler):
    """Serves one document. The first question whether it is there fails, and so does the first read."""

    failed: ClassVar[set[str]] = set()
    text = b"from elsewhere\n" * 40

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.text)))
        self.send_header("ETag", '"1"')
        self.end_headers()

    def do_GET(self) -> None:
        kind = "read" if "Range" in self.headers else "question"
        if kind not in self.failed:
            self.failed.add(kind)
            self.send_error(503)
            return
        self.do_HEAD()
        self.wfile.write(self.text)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def flaky_source() -> Iterator[str]:
    """The URL of a document that fails at first."""
    Flaky.failed.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/remote.txt"
        server.shutdown()


def make_checkout(folder: Path, run: Run, url: str) -> Path:
    """A checkout as git would give it, with two recipes: `tiny`, the job of the fixture `finished`, and `flaky`, of 150
    texts and the document at `url`, with two workers. The layers below flows/ are the repository's own."""
    shutil.copytree(REPOSITORY / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "prefect.yaml", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    tiny, flaky = folder / "recipes" / "tiny", folder / "recipes" / "flaky"
    write_texts(tiny / "texts")
    write_params(tiny, TINY)
    add_own_stage(tiny)
    write_texts(flaky / "texts", 150)
    sources = {"sources": ["texts/**/*.txt", url]}
    write_params(flaky, {**TINY, "recipe": "flaky", "ingest": sources, "compute": {"workers": 2}})
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
    """A run of the deployment `pipeline/nightly` by the worker."""

    deployed: Deployed
    flow_run: str
    state: str

    @property
    def recipe(self) -> Path:
        return self.deployed.checkout / "recipes" / "tiny"


def alive_below(folder: Path) -> dict[psutil.Process, list[str]]:
    """The processes that work in `folder`, and their commands: another moment later they may have ended."""
    found = {}
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found[process] = process.cmdline()
        except (psutil.Error, OSError):
            continue
    return found
