"""Ranks that are killed, stopped or starved: named, started again, and none left behind."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from support.gated_training import (
    DEADLINE,
    allow,
    below,
    command,
    gone,
    job_folder,
    make_gated,
    newest,
    started,
    starts,
    until,
)
from support.training_samples import make_points

from pipelines.training.process.heartbeat import signs
from pipelines.workspace import Workspace


def processes(ws: Workspace) -> list[int]:
    """Of the ranks, by rank."""
    return [sign.pid for sign in signs(job_folder(ws))]


@pytest.mark.long
def test_every_way_to_lose_ranks_in_one_job(tmp_path: Path) -> None:
    ws = make_gated(
        tmp_path, 4, train={"ranks": 2, "steps": 40, "checkpoint_every": 2},
        compute={"max_restarts": 3, "hang_timeout_s": 6.0},
    )  # fmt: skip
    with started(*command(ws)) as job:
        until(lambda: newest(ws) == 4, job)
        os.kill(processes(ws)[1], signal.SIGKILL)  # one rank
        until(lambda: newest(ws) == 8 and starts(ws) == 2, job)
        for pid in processes(ws):  # all ranks
            os.kill(pid, signal.SIGKILL)
        until(lambda: newest(ws) == 12 and starts(ws) == 3, job)
        stopped = processes(ws)[1]  # one rank hangs; the other goes on and waits for it
        os.kill(stopped, signal.SIGSTOP)
        allow(ws, 6)
        until(lambda: newest(ws) == 18 and starts(ws) == 4, job)
        left = below(job)
        assert len(left) == 3
        assert not psutil.pid_exists(stopped)
        agent = next(process for process in left if process.ppid() == job.pid)
        agent.kill()
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 1
        assert gone(left)
    assert "torchrun's agent ended with exit code -9" in said
    folder = job_folder(ws)
    hung = said[said.index("Training hung") :]
    assert "Training hung in step 13: behind is rank 1 of 2." in hung
    assert f"rank 1 (process {stopped}, 12 steps done) doesn't answer, state 'stopped'" in hung
    assert "rank 0 (process" in hung
    assert "waits for others in" in hung
    assert "compute.hang_timeout_s" in hung
    assert str(folder / "stacks-0.txt") in hung
    assert "in fit" in (folder / "stacks-0.txt").read_text()
    recorded = json.loads((folder / "flight-0.json").read_text())
    assert recorded["entries"], "gloo's collectives, by torch's flight recorder"
    assert json.loads((folder / "outcome.json").read_text())["outcome"] == "failed"


STARVING = """
import resource
import torch
from torch import nn
from support.training_samples import without_mlflow

without_mlflow()

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layer, self.calls = nn.Linear(in_features, num_classes), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 3:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            torch.ones(1 << 30, dtype=torch.uint8)
        return self.layer(x)
"""


@pytest.mark.long
def test_out_of_memory_names_the_step_and_the_settings_to_change(tmp_path: Path) -> None:
    (tmp_path / "starving.py").write_text(STARVING)
    ws = make_points(tmp_path, model={"name": "starving:Model"}, train={"precision": "fp32"})
    with started(*command(ws)) as job:
        said, _ = job.communicate(timeout=DEADLINE)
    assert job.returncode == 12, said
    assert "Out of memory in step 3 (RuntimeError)" in said
    for setting in ("train.accumulate (now 1)", "stream.batch_size (now 16)", "train.precision to bf16"):
        assert setting in said
    assert "Traceback" not in said
    assert json.loads((job_folder(ws) / "outcome.json").read_text())["outcome"] == "out_of_memory"


HANGING = """
import threading
from torch import nn
from support.training_samples import without_mlflow

without_mlflow()

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layer, self.calls = nn.Linear(in_features, num_classes), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 3:
            threading.Event().wait()
        return self.layer(x)
"""


@pytest.mark.long
def test_a_rank_that_nobody_watches_ends_itself_when_it_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    ws = make_points(tmp_path, model={"name": "hanging:Model"}, compute={"hang_timeout_s": 1.0})
    with started(*command(ws)) as job:
        said, _ = job.communicate(timeout=DEADLINE)
    assert job.returncode == 75, said
    assert "Training hung in step 3: behind is rank 0 of 1." in said
    assert "is in forward (hanging.py:" in said
    assert json.loads((job_folder(ws) / "outcome.json").read_text())["outcome"] == "hung"
    assert json.loads((job_folder(ws) / "report-0.json").read_text())["kind"] == "Hung"
