"""train.entrypoint: what a trainer of one's own is handed, what it leaves, and what a person reads when it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support import training_samples
from support.training_samples import losses, make_points, with_train, without_mlflow

from pipelines.evaluation.measure import measure
from pipelines.models import load_model
from pipelines.training import train
from pipelines.training.curves import Curves
from pipelines.training.trainer.job import trainer_job
from pipelines.workspace import Workspace
from storage.errors import Interrupted, OutOfMemory, ParamsError, ShardlineError

TRAINER = """
import torch

def train(job, lr=0.1):
    model = job.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    step = 0
    while step < job.steps:
        for batch in job.train:
            loss = job.loss(model(batch["inputs"]), batch["targets"]) * batch["weight"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            job.log({"train_loss": loss.item()}, step)
            if step == job.steps:
                break
    job.log(job.validate(model), step)
    job.report({"folder": str(job.checkpoint_folder.is_dir()), "train_loss": 0.5})
    job.save_model(model)

def forgetful(job):
    pass

def other(job):
    job.save_model(torch.nn.Linear(4, 4))

def talkative(job):
    job.report({"model": object})
    job.save_model(job.build_model())

def starves(job):
    torch.empty(1 << 60)

def breaks(job):
    raise RuntimeError("of its own making, with memory")

def nothing():
    pass

number = 3
"""
STARVES = TRAINER.splitlines().index("    torch.empty(1 << 60)") + 1
SCRIPT = """
import sys
from pipelines.training.trainer.job import trainer_job
from trainer import train

job = trainer_job()
assert __name__ == "__main__" and sys.argv[0].endswith("script.py")
train(job)
sys.exit(int(job.params.train.args.get("code", 0)))
"""
#: Rank 1 alone gets a signal in the ninth step, and the ranks leave together.
STOPPED = """
import os, signal
from with_accelerate import train as example

def train(job):
    seed_step = job.seed_step

    def seed(step):
        seed_step(step)
        if job.world == 2 and job.rank == 1 and step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    job.seed_step = seed
    example(job)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process, in the workspace's folder, without MLflow."""
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    for name, text in (("trainer", TRAINER), ("script", SCRIPT), ("stopped", STOPPED)):
        (tmp_path / f"{name}.py").write_text(text)
    for name in ("trainer", "stopped"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    without_mlflow()


def test_a_function_leaves_all_that_the_later_stages_ask_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = make_points(tmp_path, train={"entrypoint": "trainer:train", "args": {"lr": 0.5}})
    metrics = train(ws)
    assert metrics["train_loss"] == 0.5, "what is reported goes before the curve's last point"
    assert metrics["val_loss"] < 1.3
    assert (metrics["steps"], metrics["folder"]) == (12, "True")
    assert len(losses(ws)) == 12
    assert ws.plots("val.csv").read_text().splitlines()[0] == "step,val_loss,val_accuracy"
    assert "mlp by trainer:train" in capsys.readouterr().out
    assert json.loads((ws.model / "run.json").read_text())["experiment"] == "test"
    zone = ws.zone("shards")
    found = measure(*load_model(ws.model), zone, zone.manifest(), ws.params).metrics
    assert found["accuracy"] > 0.4
    assert not any((ws.state / "entrypoint").iterdir()), "kept for a training that is done"


def test_a_script_gets_its_job_from_handoff(tmp_path: Path) -> None:
    ws = make_points(tmp_path, train={"entrypoint": "script.py"})
    assert train(ws)["folder"] == "True"
    by_function = make_points(tmp_path / "other", train={"entrypoint": "trainer:train"})
    train(by_function)
    assert losses(ws) == losses(by_function)
    with pytest.raises(ShardlineError, match="for a trainer that shardline started"):
        trainer_job()


@pytest.mark.parametrize(
    ("entrypoint", "args", "error", "said"),
    [
        ("trainr:train", {}, ParamsError, "'trainr:train' does not import"),
        ("trainer:trian", {}, ParamsError, "Did you mean 'train'?"),
        ("trainer:number", {}, ParamsError, "is no function"),
        ("trainer:nothing", {}, ParamsError, "is called with job, but takes ()"),
        ("trainer:train", {"lrr": 1.0}, ParamsError, "Did you mean 'lr'?"),
        ("trainer:starves", {}, OutOfMemory, "cheapest first: let trainer:starves take a batch in pieces"),
        ("trainer:starves", {}, OutOfMemory, f"Out of memory in trainer.py, line {STARVES} (RuntimeError)"),
        ("trainer:forgetful", {}, ShardlineError, "returned without a model: call job.save_model"),
        ("trainer:other", {}, ParamsError, "these weights don't fit model.name='mlp'"),
        ("trainer:talkative", {}, ShardlineError, "job.report: not a JSON value"),
        ("trainer:breaks", {}, RuntimeError, "of its own making, with memory"),
        ("scirpt.py", {}, ParamsError, "does not exist. Did you mean 'script.py'?"),
        ("script.py", {"code": 3}, ShardlineError, "left with sys.exit(3)"),
    ],
)
def test_what_goes_wrong_is_explained(
    tmp_path: Path, entrypoint: str, args: dict[str, Any], error: type[Exception], said: str
) -> None:
    ws = make_points(tmp_path, train={"entrypoint": entrypoint, "args": args, "steps": 1})
    with pytest.raises(error) as caught:
        train(ws)
    assert said in str(caught.value)
    assert not ws.model.exists()


@pytest.mark.long
def test_two_ranks_stopped_by_one_of_them_go_on_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short last batch of an epoch is a single sample, of which one rank has none."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    settings: dict[str, Any] = {"rows": (65, 24, 24), "model": {"name": "mlp", "args": {"hidden": [16]}}}
    own = {"entrypoint": "stopped:train", "log_every": 1, "steps": 13}
    whole = make_points(tmp_path / "whole", train=own, **settings)
    train(whole)

    ws = make_points(tmp_path, train=own | {"ranks": 2}, **settings)
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("", "tests", "examples"))
    done = subprocess.run(
        [sys.executable, training_samples.__file__, str(ws.root)], text=True, capture_output=True, timeout=200,
        env=os.environ | {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 143, done.stdout + done.stderr
    assert "Training stopped by SIGTERM: the entry point stopped:train left before its end" in done.stderr
    [checkpoint] = (ws.state / "entrypoint").glob("*/checkpoints/step-*")
    assert checkpoint.name == "step-00000009"

    train(with_train(ws, ranks=1))
    assert losses(ws) == pytest.approx(losses(whole), rel=1e-5)


def test_curves_forget_what_an_interrupted_run_had_come_to(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.jsonl")
    for step in (1, 2, 3):
        curves.add({"train_loss": step}, step)
    curves.add({"val_loss": 9}, 3)
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')  # cut off
    again = Curves(tmp_path / "curves.jsonl")
    assert again.points == curves.points
    again.add({"train_loss": 7}, 2)
    assert again.csv(val=False).decode().split() == ["step,train_loss,lr", "1,1.0,", "2,7.0,"]
    assert again.csv(val=True).decode().split() == ["step,val_loss"]
    assert Curves(tmp_path / "curves.jsonl").points == again.points


def test_a_model_is_not_published_once_the_trainer_knows_of_the_signal(tmp_path: Path) -> None:
    (tmp_path / "hasty.py").write_text(
        "import os, signal\n"
        "def train(job):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert job.stopping() and job.stop\n"
        "    job.save_model(job.build_model())\n"
    )
    ws = make_points(tmp_path, train={"entrypoint": "hasty:train"})
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM.*is kept"):
        train(ws)
    assert not ws.model.exists()
    assert Workspace.open(tmp_path).state.joinpath("entrypoint").is_dir()
