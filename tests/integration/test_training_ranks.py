"""Several ranks, started by torchrun on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support import training_samples
from support.gated_training import command, started, starts
from support.training_samples import SEQ_LEN, losses, make_points, make_text, with_train, without_mlflow

from pipelines.training import train
from pipelines.training.session import samples_in
from pipelines.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 90  # seconds

#: Fails on one rank only, after a step; and remembers its processes.
FAILING = """
import json
import os
from torch import nn

class Model(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 2 and os.environ["RANK"] == "1":
            raise RuntimeError("the second rank has had enough")
        return self.head(x)
"""


def start(ws: Workspace) -> "subprocess.Popen[str]":
    # Port 9 refuses at once: the ranks train without MLflow.
    env = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    command = [sys.executable, training_samples.__file__, str(ws.root)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(condition, process: "subprocess.Popen[str]") -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, left = psutil.wait_procs(processes, timeout=10)
    return left


def processes_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3, "an agent and two ranks"
    return children


def newest(ws: Workspace) -> int:
    """The step of the newest checkpoint; 0 without one."""
    manifests = (ws.state / "checkpoints").glob("*/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in manifests), default=0)


@pytest.mark.long
def test_ranks_killed_stopped_and_resumed_take_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    # 17 windows in batches of 8: each epoch ends with a batch of one sample, of which one rank has none.
    settings = {"steps": 300, "log_every": 20, "eval_every": 100, "checkpoint_every": 10, "lr": 1e-3}
    one = make_text(tmp_path / "one", documents=6, train=settings)
    assert samples_in(one.zone("shards").manifest(), "train", SEQ_LEN) % 8 == 1
    train(one)
    two = make_text(tmp_path / "two", documents=6, train=settings | {"ranks": 2})

    killed = start(two)
    wait_until(lambda: newest(two) >= 10, killed)
    children = processes_of(killed)
    killed.kill()
    killed.communicate(timeout=DEADLINE)
    assert not alive(children), "a killed launcher left processes behind"

    first = newest(two)
    stopped = start(two)
    wait_until(lambda: newest(two) >= 100, stopped)
    children = processes_of(stopped)
    stopped.send_signal(signal.SIGTERM)
    out, said = stopped.communicate(timeout=DEADLINE)
    assert stopped.returncode == 143, said
    assert f"going on from step {first} of 300" in out
    assert f"after step {newest(two)} of 300; its state is saved" in said
    assert "Traceback" not in said
    assert not alive(children), "a stopped launcher left processes behind"

    second = newest(two)
    assert 100 <= second < 300
    train(with_train(two, ranks=1))  # fewer ranks go on with the same samples
    assert f"going on from step {second} of 300" in capsys.readouterr().out
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def ids_by_step(root: Path) -> dict[int, list[str]]:
    """The samples of each step, of all ranks; a step that was done again must have had the same ones."""
    found: dict[int, dict[str, set[str]]] = {}
    for file in root.glob("ids-*.jsonl"):
        world = file.name.split("-")[1]
        for line in file.read_text().splitlines():
            step, ids = json.loads(line)
            found.setdefault(step, {}).setdefault(world, set()).update(ids)
    assert all(len({frozenset(ids) for ids in worlds.values()}) == 1 for worlds in found.values())
    return {step: sorted(next(iter(worlds.values()))) for step, worlds in found.items()}


@pytest.mark.long
def test_one_rank_then_three_then_two_take_the_same_samples_to_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {name: tmp_path / name for name in ("steady", "changing")}
    settings = {"steps": 40, "eval_every": 20, "checkpoint_every": 7, "lr": 1e-2, "log_every": 5}
    for name, root in roots.items():
        root.mkdir()
        (root / "signalling.py").write_text(training_samples.SIGNALLING.replace("nn.Dropout(0.2), ", ""))
        (root / "noting.py").write_text(training_samples.NOTING)
        ws = make_points(root, model={"name": "noting:Model"}, train=settings)
        for ranks, signal_at in ((1, 12), (3, 15), (2, 0)) if name == "changing" else ((1, 0),):
            environment = {"SIGNAL": "SIGTERM", "SIGNAL_AT": str(signal_at)}
            with monkeypatch.context() as patch:
                for key, value in environment.items():
                    patch.setenv(key, value)
                process = start(with_train(ws, ranks=ranks))
            out, said = process.communicate(timeout=DEADLINE)
            assert process.returncode == (143 if signal_at else 0), out + said
    steady, changing = (ids_by_step(root) for root in roots.values())
    assert set(steady) == set(range(40))
    assert changing == steady
    assert {file.name.split("-")[1] for file in roots["changing"].glob("ids-*")} == {"1", "2", "3"}
    one, other = (losses(Workspace.open(root)) for root in roots.values())
    assert other == pytest.approx(one, abs=1e-4)


@pytest.mark.long
def test_a_failing_rank_is_named_with_its_last_lines_and_none_survives(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    ws = make_points(tmp_path, model={"name": "failing:Model"}, train={"ranks": 2})
    process = start(ws)
    seen: dict[int, psutil.Process] = {}

    def watch() -> bool:
        seen.update({child.pid: child for child in psutil.Process(process.pid).children(recursive=True)})
        return len(seen) >= 3

    wait_until(watch, process)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "Rank 1 of 2 failed with exit code 1" in said
    assert "RuntimeError: the second rank has had enough" in said
    assert not alive(list(seen.values()))


@pytest.mark.long
def test_ranks_that_somebody_else_starts_train_sharded_and_leave_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP2 on two ranks, under a torchrun that tells them what they are, as a cluster would: the curve of one rank,
    and a model that evaluates alone."""
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    settings = {"steps": 6, "log_every": 1, "eval_every": 6, "lr": 1e-3, "patience": 3}
    one = make_text(tmp_path / "one", documents=6, train=settings)
    train(one)
    two = make_text(tmp_path / "two", documents=6, train=settings | {"ranks": 2, "parallel": {"shard": 2}})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with started(*torchrun, *command(two)[1:]) as job:
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 0, said
    assert json.loads(two.metrics("train").read_text())["steps"] == 6
    outcomes = [json.loads(file.read_text())["outcome"] for file in two.state.glob("logs/2*/outcome.json")]
    assert outcomes == ["done", "done"]
    assert [starts(two, rank) for rank in (0, 1)] == [1, 1]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    alone, sharded = (load_file(ws.model / "model.safetensors") for ws in (one, two))
    assert alone.keys() == sharded.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-4, atol=1e-6)
