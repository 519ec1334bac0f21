"""Ray, on a real cluster of several processes on this machine: ranks of a training, items of a data stage."""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from gated_training import (
    DEADLINE,
    allow,
    below,
    command,
    gone,
    job_folder,
    make_gated,
    newest,
    started,
    until,
)
from training_samples import losses, without_mlflow

from pipelines.executors import RayExecutor
from pipelines.training import train
from storage.errors import DataError


@pytest.mark.soak
def test_ray_trains_stops_on_sigterm_goes_on_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    settings = {"steps": 30, "eval_every": 15, "checkpoint_every": 5, "log_every": 5}
    alone = make_gated(tmp_path / "alone", 10**6, train=settings)
    monkeypatch.chdir(alone.root)
    train(alone)
    ws = make_gated(tmp_path / "ray", 10, train=settings | {"ranks": 2}, compute={"launcher": "ray"})
    with started(*command(ws)) as job:
        until(lambda: newest(ws) == 10, job)
        children = below(job)
        # The ranks themselves are torch's affair, whose store listens on all addresses under any launcher.
        rays = [child for child in children if "RayTrainWorker" not in " ".join(child.cmdline())]
        listening = {at.laddr.ip for ray in rays for at in ray.net_connections("inet") if at.status == "LISTEN"}
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert listening
        job.send_signal(signal.SIGTERM)  # which opens the gate
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 143, said
        assert gone(children), [process.cmdline() for process in children if process.is_running()]
    step = newest(ws)
    assert f"stopped by SIGTERM after step {step} of 30; its state is saved" in said
    assert json.loads((job_folder(ws) / "outcome.json").read_text())["outcome"] == "preempted"
    assert (job_folder(ws) / "rank-1.log").is_file()
    assert step == 11
    allow(ws, 10**6)
    with started(*command(ws)) as again:
        said, _ = again.communicate(timeout=DEADLINE)
        assert again.returncode == 0, said
    assert "going on from step 11 of 30" in said
    assert losses(ws) == pytest.approx(losses(alone), rel=1e-5)


def _double(number: int) -> int:
    if number < 0:
        raise DataError(f"{number} is negative")
    return 2 * number


@pytest.mark.soak
def test_ray_works_items_and_hands_on_our_errors() -> None:
    executor = RayExecutor(2, None)
    assert sorted(executor.map(_double, range(30))) == [2 * n for n in range(30)]
    assert not [p for p in psutil.Process().children(recursive=True) if "raylet" in p.name()]
    assert not list(Path(tempfile.gettempdir()).glob(f"shardline-ray-{os.getpid()}-*"))
    with pytest.raises(DataError, match=r"^-1 is negative$"):
        list(executor.map(_double, [1, -1]))


HOLDING = """
import threading
from pipelines.ray_cluster import ray_cluster
with ray_cluster(None, 1, "compute.engine"):
    print("up", flush=True)
    threading.Event().wait()
"""


@pytest.mark.soak
def test_a_killed_command_leaves_no_ray_behind() -> None:
    with started(sys.executable, "-c", HOLDING) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        children = below(holder)
        assert any("raylet" in process.name() for process in children)
        holder.kill()
        assert gone(children)
