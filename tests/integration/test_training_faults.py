"""A training in a process of its own, killed: run again, it ends as if nothing had happened."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import training_samples
from support.training_samples import make_signalling, outs, without_mlflow

from pipelines.training import train
from pipelines.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def quiet_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainings in this process, in the workspace's folder, without MLflow."""
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signalling.py").write_text(training_samples.SIGNALLING)
    without_mlflow()


def run(ws: Workspace, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"} | environment
    command = [sys.executable, training_samples.__file__, str(ws.root)]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=120)


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, quiet_training: None) -> dict[str, bytes]:
    ws = make_signalling(tmp_path_factory.mktemp("undisturbed"))
    train(ws)
    return outs(ws)


def killed_until_done(ws: Workspace, kills: int, seed: int) -> None:
    """Killed with SIGKILL in random steps so many times, each start going on from a checkpoint; then left to end.

    A kill costs two checkpoints' steps at most: the newest may not be complete, but the one before it is.
    """
    chance, train_params = random.Random(seed), ws.params.train
    killed_in = 0
    for _ in range(kills):
        at = chance.randint(2, (train_params.steps or 0) // 2)  # counted from the start of the process
        done = run(ws, SIGNAL="SIGKILL", SIGNAL_AT=str(at))
        assert "Traceback" not in done.stderr
        found = re.search(r"going on from step (\d+) of", done.stdout)
        begun = int(found[1]) if found else 0
        assert begun > killed_in - 1 - 2 * train_params.checkpoint_every
        if ws.model.exists():
            return
        assert done.returncode != 0, done.stderr
        killed_in = begun + at
    train(ws)


@pytest.mark.parametrize(
    ("kills", "changes"),
    [
        pytest.param(3, {}, marks=pytest.mark.long),
        pytest.param(20, {"steps": 60}, marks=pytest.mark.soak),
        pytest.param(20, {"steps": 60, "ranks": 2}, marks=pytest.mark.soak),
    ],
)
def test_sigkill_in_random_steps_then_the_same_command_gives_the_same_bytes(
    tmp_path: Path, quiet_training: None, kills: int, changes: dict[str, int]
) -> None:
    whole = make_signalling(tmp_path / "whole", train=changes)
    train(whole)
    ws = make_signalling(tmp_path / "killed", train=changes)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    killed_until_done(ws, kills, seed)
    assert outs(ws) == outs(whole)


def test_sigterm_saves_exits_143_and_goes_on(
    tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    ws = make_signalling(tmp_path)
    stopped = run(ws, SIGNAL="SIGTERM", SIGNAL_AT="7")
    assert stopped.returncode == 143
    assert "stopped by SIGTERM after step 7 of 12" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    train(ws)
    assert "going on from step 7 of 12" in capsys.readouterr().out
    assert outs(ws) == undisturbed


def test_a_stopped_training_begins_anew_when_its_own_code_has_changed(tmp_path: Path, quiet_training: None) -> None:
    """Else one model would come of two programs, and dvc.lock would name the second alone."""
    ws = make_signalling(tmp_path)
    code = tmp_path / "signalling.py"
    before = code.read_text()
    assert run(ws, SIGNAL="SIGTERM", SIGNAL_AT="7").returncode == 143
    code.write_text(before.replace("nn.ReLU()", "nn.Tanh()"))
    done = run(ws, SIGNAL="SIGTERM", SIGNAL_AT="3")
    assert done.returncode == 143
    assert "going on" not in done.stdout
    code.write_text(before)
    assert "going on from step 7 of" in run(ws).stdout
