"""Ray, on a real cluster of several processes on this machine: ranks of a training, items of a data stage."""

import json
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from support.gated_training import (
    DEADLINE,
    allow,
    below,
    command,
    gone,
    job_folder,
    listening,
    make_gated,
    newest,
    started,
    until,
)
from support.training_samples import losses, without_mlflow

from pipelines.params import Compute
from pipelines.runtime.executors import RayExecutor
from pipelines.training import train
from pipelines.workspace import Workspace
from storage.errors import DataError

SETTINGS = {"steps": 30, "eval_every": 15, "checkpoint_every": 5, "log_every": 5}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The same training in this process."""
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    ws = make_gated(tmp_path / "alone", 10**6, train=SETTINGS)
    monkeypatch.chdir(ws.root)
    train(ws)
    return ws


@pytest.mark.long
def test_ray_trains_stops_on_sigterm_and_leaves_nothing(tmp_path: Path, alone: Workspace) -> None:
    ws = make_gated(tmp_path / "ray", 10, train=SETTINGS | {"ranks": 2}, compute={"launcher": "ray"})
    home = tmp_path / "home"
    home.mkdir()
    with started(*command(ws), HOME=str(home)) as job:
        until(lambda: newest(ws) == 10, job)
        children = below(job)
        assert any("RayTrainWorker" in " ".join(child.cmdline()) for child in children)
        assert listening(children) == {"127.0.0.1", "::ffff:127.0.0.1"}
        job.send_signal(signal.SIGTERM)  # which opens the gate
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 143, said
        assert not list(home.glob(".ray/*")), "its token is in no file"
        assert gone(children), [process.cmdline() for process in children if process.is_running()]
    assert "stopped by SIGTERM after step 11 of 30; its state is saved" in said
    assert json.loads((job_folder(ws) / "outcome.json").read_text())["outcome"] == "preempted"
    assert (job_folder(ws) / "rank-1.log").is_file()
    allow(ws, 10**6)
    here = ws.params.model_copy(update={"compute": Compute(), "train": ws.params.train.model_copy(update={"ranks": 1})})
    train(Workspace(ws.root, ws.project, here))  # one launcher goes on where another stopped
    assert losses(ws) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.soak
@pytest.mark.timeout(400)  # with four other jobs on two cores it took more than 150 s once, 108 s the next time
def test_ray_trains_to_the_end(tmp_path: Path, alone: Workspace) -> None:
    ws = make_gated(tmp_path / "ray", 10**6, train=SETTINGS | {"ranks": 2}, compute={"launcher": "ray"})
    with started(*command(ws)) as job:
        said, _ = job.communicate(timeout=2 * DEADLINE)
        assert job.returncode == 0, said
    assert "step 30/30" in said
    assert losses(ws) == pytest.approx(losses(alone), rel=1e-5)


def _double(number: int) -> int:
    if number < 0:
        raise DataError(f"{number} is negative")
    return 2 * number


@pytest.mark.long
def test_ray_works_items_and_hands_on_our_errors() -> None:
    results: list[int] = []
    with pytest.raises(DataError, match=r"^-1 is negative$"):
        results.extend(RayExecutor(2, None).map(_double, [*range(30), -1]))
    assert len(results) >= 23  # at most eight are in flight
    assert set(results) <= {2 * number for number in range(30)}


ENDLESS = """
import time
from pipelines.runtime.executors import RayExecutor
from pipelines.params import Compute
for _ in RayExecutor(1, None).map(time.sleep, [0, 0, 10**6]):
    print("one", flush=True)
"""


@pytest.mark.long
def test_a_killed_command_leaves_no_ray_behind() -> None:
    with started(sys.executable, "-c", ENDLESS) as command:
        assert command.stdout is not None
        while command.stdout.readline() != "one\n":  # after what Ray has to say
            assert command.poll() is None
        assert command.stdout.readline() == "one\n"
        children = below(command)
        assert any("raylet" in process.name() for process in children)
        command.kill()
        assert gone(children)
    assert not list(Path(tempfile.gettempdir()).glob(f"shardline-ray-{command.pid}-*"))
