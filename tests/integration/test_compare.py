"""`shardline compare`: every optimiser reaches a stated loss on digits; copies that talk in every way; both beside the
recipe's own outs."""

import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.training_samples import make_points

from pipelines.experiments.comparison import compare_communication, compare_optimizers, contest
from pipelines.experiments.comparison.communication_settings import ways
from pipelines.experiments.comparison.optimizer_settings import CONTENDERS
from pipelines.ingest import data_stage
from pipelines.ingest.stage import journal_of, run
from pipelines.params.train.optimizer import Optimizer
from pipelines.tracking import Run, connect
from pipelines.workspace import Workspace
from storage.errors import Interrupted, ParamsError

#: Loss on the val split, in nats (a guess has 2.30), after STEPS steps of digits at the contenders' rates.
STEPS = 20
REACHED = dict.fromkeys(CONTENDERS, 1.3) | {"lbfgs": 0.5, "cg": 0.5}


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The recipe in a project of its own."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text((REPOSITORY / "recipes/digits/params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return Workspace.open(tmp_path)


def make_shards(ws: Workspace) -> None:
    for name in ("ingest", "curate", "shard"):
        run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)


def files(ws: Workspace) -> set[str]:
    """All but state."""
    return {str(path) for path in ws.root.rglob("*") if ws.state not in path.parents and path != ws.state}


@pytest.mark.long
def test_every_optimiser_reaches_its_loss_on_digits(digits: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(digits)
    before = files(digits)
    entries = compare_optimizers(digits, steps=STEPS)
    assert {entry.name for entry in entries} == set(CONTENDERS)
    for entry in entries:
        assert not entry.course.failed
        assert entry.metrics["val_loss"] < REACHED[entry.name], entry.name
        assert entry.course.passes == STEPS or entry.name in ("lbfgs", "cg")
    assert files(digits) == before, "the recipe's own outs are left alone"
    out = digits.state / "compare"
    assert sorted(path.name for path in out.iterdir()) == ["optimizers.csv", "optimizers.md", "optimizers.png"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["optimizer", "lr"]
    best = min(entries, key=lambda entry: entry.metrics["val_loss"])
    assert lines[1].split()[0] == best.name

    store = connect(digits)
    (experiment,) = store.client.search_experiments(filter_string="name = 'digits'")
    runs = store.client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.tags["optimizer"] for run in children} == set(REACHED)
    for child in children:
        curve = store.client.get_metric_history(child.info.run_id, "train/loss")
        assert [point.step for point in curve] == list(range(1, STEPS + 1))
    kept = {item.path for item in store.client.list_artifacts(parent.info.run_id, "comparison")}
    assert kept == {f"comparison/optimizers.{suffix}" for suffix in ("csv", "md", "png")}


#: The second model of a process sends it a SIGTERM in its third step.
IMPATIENT = """
import os, signal
from torch import nn

class Model(nn.Module):
    made = 0

    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layer = nn.Linear(in_features, num_classes)
        self.calls = 0
        Model.made += 1

    def forward(self, x):
        self.calls += self.training
        if self.training and Model.made == 2 and self.calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(x)
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A small task, without MLflow."""
    monkeypatch.setattr(contest, "open_run", lambda ws, **_: Run(ws.params.recipe, "nowhere"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "impatient", raising=False)
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    return make_points(tmp_path, model={"name": "impatient:Model"}, train={"steps": 4})


def test_a_stopped_comparison_goes_on_with_what_is_missing(
    points: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match="The trainings that had ended are kept"):
        compare_optimizers(points, only=["sgd", "adam"])
    entries = compare_optimizers(points, only=["sgd", "adam"])
    assert "going on: 1 of 2 trainings are there" in capsys.readouterr().out
    assert {entry.name for entry in entries} == {"sgd", "adam"}
    assert [len(entry.course.train) for entry in entries] == [4, 4]
    assert [path.name for path in points.state.iterdir()] == ["compare"], "nothing else is left"
    assert not list((points.state / "compare").glob(".*"))


@pytest.mark.long
def test_copies_talk_in_every_way_on_ranks_that_are_started_once(
    points: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = make_points(points.root, train={"steps": 12})
    entries = {entry.name: entry for entry in compare_communication(ws, local_steps=4)}
    assert set(entries) == set(ways(12, 4))
    sent = {name: entry.course.sent_mb for name, entry in entries.items()}
    whole = sent["all-reduce"]
    assert sent["fp16"] == sent["bf16"] == whole / 2
    assert sent["local"] == sent["diloco"] == pytest.approx(whole * 3 * 3 / 12)  # three meetings, AdamW's two moments
    assert sent["post-local"] == pytest.approx(whole * (4 + 2 * 3) / 12)
    for entry in entries.values():
        assert [(p["step"], p["sent_mb"] <= entry.course.sent_mb) for p in entry.course.val] == [
            (4, True), (8, True), (12, True),
        ]  # fmt: skip
    table = (ws.state / "compare" / "communication.csv").read_text().splitlines()
    assert table[0].split(",")[:3] == ["way", "train.communication", "val loss"]
    assert len(table) == 1 + len(entries)
    assert (ws.state / "compare" / "communication.png").stat().st_size > 10_000
    assert "Traceback" not in capsys.readouterr().err


def test_one_copy_has_nobody_to_talk_to(points: Workspace) -> None:
    with pytest.raises(ParamsError, match="at least two"):
        compare_communication(points, ranks=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_optimiser_reaches_the_documented_loss_in_the_recipes_own_length(digits: Workspace) -> None:
    stated = re.search(r"must reach a val loss below (\d\.\d+)", (REPOSITORY / "docs" / "optimizers.md").read_text())
    assert stated is not None
    make_shards(digits)
    entries = compare_optimizers(digits)
    assert {entry.name for entry in entries} == set(CONTENDERS)
    missed = {e.name: e.course.failed or e.loss for e in entries if e.course.failed or e.loss >= float(stated[1])}
    assert not missed


def test_an_unknown_name_is_refused(digits: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"--only adamm: no such optimiser. Did you mean 'adam'\?"):
        compare_optimizers(digits, only=["sgd", "adamm"])


def test_every_optimiser_has_a_contender() -> None:
    from typing import get_args

    names = {part.model_fields["name"].default for part in get_args(get_args(Optimizer)[0])}
    assert names == set(CONTENDERS)
