"""A training that a test holds at the step it wants, run as a process (training_samples.py) in this or another network
namespace; and what its job folder tells."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from support import training_samples
from support.training_samples import make_points

from pipelines.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 150  # seconds: a machine that is busy is no failure

#: Each process of it does as many training steps as the file `limit` says and waits there, giving signs of life, until
#: the file says more or a signal asks it to stop.
GATED = """
import gc, time
from pathlib import Path
from torch import nn
from support.training_samples import without_mlflow
from pipelines.training.process.heartbeat import beat, last_step
from pipelines.training.process.signals import StopRequest

without_mlflow()  # its import takes longer than the training

LIMIT = Path(__file__).with_name("limit")

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, 16), nn.ReLU(), nn.Linear(16, num_classes))
        self.calls, self.wishes = 0, []

    def forward(self, x):
        self.calls += self.training
        while self.training and self.calls > int(LIMIT.read_text()) and not self.stopped():
            beat(last_step() or 0)
            time.sleep(0.02)
        return self.layers(x)

    def stopped(self):
        if not self.wishes:  # looked for once: it takes long
            gc.unfreeze()  # see pipelines.runtime.gc_tuning
            self.wishes = [each for each in gc.get_objects() if type(each) is StopRequest]
        return any(self.wishes)
"""


def make_gated(root: Path, limit: int, **changes: Any) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    (root / "gated.py").write_text(GATED)
    ws = make_points(root, model={"name": "gated:Model"}, **changes)
    allow(ws, limit)
    return ws


def allow(ws: Workspace, limit: int) -> None:
    """Let each process take `limit` steps in all."""
    temporary = ws.root / "limit.new"
    temporary.write_text(str(limit))
    temporary.replace(ws.root / "limit")


def command(ws: Workspace) -> list[str]:
    return [sys.executable, training_samples.__file__, str(ws.root)]


@contextmanager
def started(*words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A process in the tests' environment; MLflow's port 9 refuses at once, so the ranks train without it."""
    env = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    with subprocess.Popen(
        words, env=env | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], Any], *processes: "subprocess.Popen[str]") -> None:
    """Wait for a condition, while the processes run."""
    end = time.monotonic() + DEADLINE
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def newest(ws: Workspace) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    manifests = (ws.state / "checkpoints").glob("*/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in manifests), default=0)


def starts(ws: Workspace, rank: int = 0) -> int:
    """How often a rank has started, in all of the workspace's jobs."""
    logs = ws.state.glob(f"logs/2*/rank-{rank}.log")
    return sum(len(re.findall(r"^=== rank", log.read_text(), re.MULTILINE)) for log in logs)


def job_folder(ws: Workspace) -> Path:
    """Of the newest job."""
    return (ws.state / "logs" / "latest").resolve()


def below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses at which they wait for connections."""
    return {at.laddr.ip for each in processes for at in each.net_connections("inet") if at.status == psutil.CONN_LISTEN}


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether they end soon."""
    return not psutil.wait_procs(list(processes), timeout=30)[1]
