"""`shardline compare optimizers` on digits: every optimiser reaches a stated loss, beside the recipe's own outs."""

from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipelines.ingest import data_stage
from pipelines.ingest.stage import journal_of, run
from pipelines.params.optimizer import Optimizer
from pipelines.tracking import connect
from pipelines.training.comparison import compare_optimizers
from pipelines.training.comparison.contenders import CONTENDERS
from pipelines.workspace import Workspace
from storage.errors import ParamsError

#: Loss on the val split, in nats (a guess has 2.30), after STEPS steps of digits at the contenders' rates.
STEPS = 40
REACHED = {
    "sgd": 1.2, "adam": 1.0, "adamw": 1.0, "nadam": 1.0, "rmsprop": 1.2, "adagrad": 1.2, "adadelta": 1.2, "muon": 1.0,
    "lbfgs": 1.0, "cg": 1.0,
}  # fmt: skip


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The recipe in a project of its own."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text((REPOSITORY / "recipes/digits/params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return Workspace.open(tmp_path)


def files(ws: Workspace) -> set[str]:
    """All but state."""
    return {str(path) for path in ws.root.rglob("*") if ws.state not in path.parents and path != ws.state}


def test_every_optimiser_reaches_its_loss_on_digits(digits: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ingest", "curate", "shard"):
        run(data_stage(name, digits), journal_of(digits, name), digits.params.compute)
    before = files(digits)
    entries = compare_optimizers(digits, steps=STEPS)
    assert {entry.name for entry in entries} == set(REACHED) == set(CONTENDERS)
    for entry in entries:
        assert not entry.failed
        assert entry.metrics["val_loss"] < REACHED[entry.name], entry.name
        assert entry.passes == STEPS or entry.name in ("lbfgs", "cg")
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
        curve = store.client.get_metric_history(child.info.run_id, "train_loss")
        assert [point.step for point in curve] == list(range(1, STEPS + 1))
    kept = {item.path for item in store.client.list_artifacts(parent.info.run_id, "comparison")}
    assert kept == {f"comparison/optimizers.{suffix}" for suffix in ("csv", "md", "png")}


def test_an_unknown_name_is_refused(digits: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"--only adamm: no such optimiser. Did you mean 'adam'\?"):
        compare_optimizers(digits, only=["sgd", "adamm"])


def test_every_optimiser_has_a_contender() -> None:
    from typing import get_args

    names = {part.model_fields["name"].default for part in get_args(get_args(Optimizer)[0])}
    assert names == set(CONTENDERS)
