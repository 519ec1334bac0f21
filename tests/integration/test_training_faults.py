"""A training in a process of its own, killed: run again, it ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import training_samples
from training_samples import make_signalling, outs, without_mlflow

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


def test_sigkill_then_the_same_command_gives_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    ws = make_signalling(tmp_path)
    first = run(ws, SIGNAL="SIGKILL", SIGNAL_AT="8")
    assert first.returncode == -9
    assert not ws.model.exists()
    second = run(ws, SIGNAL="SIGKILL", SIGNAL_AT="5")  # a checkpoint every 3 steps: this is step 11
    assert second.returncode == -9
    assert "going on from step 6 of 12" in second.stdout
    train(ws)
    assert "going on from step 9 of 12" in capsys.readouterr().out
    assert outs(ws) == undisturbed


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
