"""What a step does besides: the moving average, steps that are not finite, line searches in the loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training_samples import losses, make_points, make_signalling, outs, with_train, without_mlflow
from torch import nn

from pipelines.params.train.step import Ema
from pipelines.training import train
from pipelines.training.loop import forward_backward
from pipelines.training.optimizers.ema import Average
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.session import open_session
from pipelines.training.step import take_step
from pipelines.workspace import Workspace
from storage.errors import DataError, Interrupted

#: Answers nan in training steps FIRST to LAST (counted from 1 in this process).
BROKEN = """
import os
from torch import nn

class Model(nn.Module):
    calls = 0

    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x):
        Model.calls += self.training
        first, last = (int(part) for part in os.environ["BROKEN"].split("-"))
        return self.head(x) * (float("nan") if self.training and first <= Model.calls <= last else 1.0)
"""

#: Has a finite loss, and a gradient that is not a number: infinite times zero.
ROOTLESS = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.head(x) + torch.sqrt(self.head.weight.square().sum() * 0)
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


def make_broken(root: Path, monkeypatch: pytest.MonkeyPatch, steps: str, **changes: Any) -> Workspace:
    """A training whose steps `steps` ("3-4") are not finite."""
    import sys

    root.mkdir(parents=True, exist_ok=True)
    module = f"broken_{root.name}"
    (root / f"{module}.py").write_text(BROKEN)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.chdir(root)
    monkeypatch.setenv("BROKEN", steps)
    return make_points(root, model={"name": f"{module}:Model"}, train=changes)


def test_a_skipped_step_changes_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = make_broken(tmp_path / "skip", monkeypatch, "5-6", nonfinite={"name": "skip", "limit": 2}, log_every=1)
    metrics = train(ws)
    assert metrics["steps"] == 12
    assert metrics["skipped_steps"] == 2
    assert len(losses(ws)) == 10
    said = capsys.readouterr().out
    assert "Step 5: loss nan" in said
    assert "shardline replay --step 6" in said
    assert "Skipped (2 of at most 2 in a row)" in said
    assert all(value.isfinite().all() for value in load_file(ws.model / "model.safetensors").values())


def test_too_many_in_a_row_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = make_broken(tmp_path / "many", monkeypatch, "5-99", nonfinite={"name": "skip", "limit": 2})
    with pytest.raises(DataError, match=r"Step 7: .*2 steps in a row were skipped|Step 7: .*limit steps in a row"):
        train(ws)


@pytest.mark.parametrize("at", [2, 8])
def test_backing_off_goes_on_from_the_checkpoint_with_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settings = {"nonfinite": {"name": "backoff", "factor": 0.25}, "log_every": 1, "schedule": "constant", "warmup": 0.0}
    ws = make_broken(tmp_path / f"back{at}", monkeypatch, f"{at}-{at}", **settings)
    metrics = train(ws)
    assert (metrics["steps"], metrics["backoffs"], metrics["skipped_steps"]) == (12, 1, 0)
    rates = [float(line.split(",")[2]) for line in ws.plots("train.csv").read_text().splitlines()[1:]]
    start = at // 3 * 3  # a checkpoint every 3 steps; before the first, the start
    assert rates == [pytest.approx(0.01)] * start + [pytest.approx(0.0025)] * (12 - start)


def test_a_training_without_one_finite_step_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = with_train(make_broken(tmp_path / "none", monkeypatch, "1-9", nonfinite="skip"), steps=3)
    with pytest.raises(DataError, match="Not one of the 3 steps had a finite loss"):
        train(ws)


def test_a_gradient_that_no_scale_makes_finite_ends_a_training_in_fp16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss scaler leaves out each step, halves its scale, and would do so to the end, with nothing learnt."""
    (tmp_path / "rootless.py").write_text(ROOTLESS)
    ws = make_points(tmp_path, model={"name": "rootless:Model"}, train={"steps": 20, "precision": "fp16"})
    with pytest.raises(DataError, match=r"Step 18: loss .*, gradient norm nan"):  # 65536 has been halved 17 times
        train(ws)


def test_what_a_checkpoint_still_copies_stays_when_the_optimizer_leaves_a_step_out(tmp_path: Path) -> None:
    """In fp16, for a gradient that overflowed: then nothing but the average moves."""
    order: list[str] = []
    ws = make_points(tmp_path, train={"precision": "fp16", "optimizer": "rmsprop", "ema": {"decay": 0.9}})
    with open_session(ws, Ranks()) as s:
        assert s.average is not None
        batch = next(s.data.stream)

        def overflowing() -> tuple[torch.Tensor, int]:
            loss, targets = forward_backward(s, batch)
            for parameter in s.learner.model.parameters():
                parameter.grad = torch.full_like(parameter, float("inf"))
            return loss, targets

        s.checkpoints.saver.settle = lambda: order.append("copied")  # type: ignore[method-assign]
        s.average.update = lambda step: order.append("moved")  # type: ignore[method-assign]
        take_step(s, overflowing, StopRequest())
    assert order == ["copied", "moved"]


def test_backing_off_in_vain_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = make_broken(tmp_path / "vain", monkeypatch, "4-99", nonfinite={"name": "backoff", "limit": 2})
    with pytest.raises(DataError, match=r"Step 4: .*Backing off did not help"):
        train(ws)


def test_back_at_the_start_it_is_as_if_it_had_started_with_that_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So weights, optimiser state, stream and average have all gone back."""
    settings = {"schedule": "constant", "warmup": 0.0, "ema": {"decay": 0.9}, "checkpoint_every": 100}
    ws = make_broken(tmp_path / "again", monkeypatch, "3-3", lr=0.02, nonfinite="backoff", **settings)
    train(ws)
    other = make_broken(tmp_path / "lower", monkeypatch, "0-0", lr=0.01, **settings)
    train(other)
    ours, theirs = (load_file(w.model / "model.safetensors") for w in (ws, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_evaluation_has_its_checkpoint_when_a_signal_came_just_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = make_signalling(tmp_path, train={"steps": 8, "eval_every": 8, "checkpoints": {"keep_best": 1}})
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", "8")
    with pytest.raises(Interrupted):
        train(ws)
    monkeypatch.setenv("SIGNAL_AT", "0")
    train(ws)
    assert checkpoints(ws) == [8], "kept as the best, after the training too"


def checkpoints(ws: Workspace) -> list[int]:
    """Steps of those that are there."""
    files = ws.root.glob(".shardline/checkpoints/*/step-*/manifest.json")
    return sorted(int(file.parent.name.removeprefix("step-")) for file in files)


@pytest.mark.parametrize(
    ("rules", "stay"), [({}, []), ({"keep_every": 4}, [4, 8]), ({"keep_best": 1}, [8]), ({"keep_every": 3}, [6])]
)
def test_what_stays_by_the_rules_is_saved_at_the_end_too(
    tmp_path: Path, rules: dict[str, int], stay: list[int]
) -> None:
    ws = make_points(tmp_path, train={"steps": 8, "checkpoint_every": 2, "eval_every": 4, "checkpoints": rules})
    train(ws)
    assert checkpoints(ws) == stay


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = Average(model, Ema(decay=0.75, warmup=False, every=2))
    expected = 0.0
    for step in range(1, 7):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
        if step % 2 == 0:
            expected = 0.75 * expected + 0.25 * step
    assert float(average.tensors["weight"]) == pytest.approx(expected)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 6.0
    early = Average(model, Ema(decay=0.75))
    with torch.no_grad():
        model.weight.fill_(8.0)
    early.update(1)  # 2/11 of the average stays
    assert float(early.tensors["weight"]) == pytest.approx(6 * 2 / 11 + 8 * 9 / 11)


def test_the_average_is_evaluated_and_becomes_the_model(tmp_path: Path) -> None:
    ema = {"decay": 0.8, "warmup": False}
    plain = make_points(tmp_path / "plain", train={"lr": 0.05})
    train(plain)
    last = load_file(plain.model / "model.safetensors")
    ws = make_points(tmp_path / "average", train={"lr": 0.05, "ema": ema})
    metrics = train(ws)
    assert losses(ws) == losses(plain), "the average must not touch the steps"
    assert metrics["val_loss"] != pytest.approx(_val_loss(plain), rel=1e-4)
    assert metrics["val_loss"] == pytest.approx(_val_loss(ws), rel=1e-5)
    assert not torch.equal(load_file(ws.model / "model.safetensors")["layers.0.weight"], last["layers.0.weight"])
    aside = with_train(ws, ema=ema | {"evaluate": False, "final": False})
    metrics = train(aside)
    assert metrics["val_loss"] == pytest.approx(_val_loss(plain), rel=1e-5)
    assert torch.equal(load_file(ws.model / "model.safetensors")["layers.0.weight"], last["layers.0.weight"])


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_average_becomes_the_model_with_early_stopping_too(tmp_path: Path, evaluate: bool) -> None:
    """Whether it is what the val split measured or not."""
    ema = {"decay": 0.8, "evaluate": evaluate, "final": not evaluate}
    ws = make_points(tmp_path, train={"steps": 4, "ema": ema})
    train(ws)
    expected = load_file(ws.model / "model.safetensors")
    train(with_train(ws, patience=3))  # the only evaluation is the best one
    found = load_file(ws.model / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _val_loss(ws: Workspace) -> float:
    from pipelines.evaluation import evaluate_model
    from pipelines.models import load_model

    params = ws.params.model_copy(update={"evaluate": ws.params.evaluate.model_copy(update={"split": "val"})})
    zone = ws.zone("shards")
    return float(evaluate_model(*load_model(ws.model), zone, zone.manifest(), params)["loss"])


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "cg", "carry": True}, "lr": 0.1},
        {"optimizer": "lbfgs", "lr": 1.0},
        {"optimizer": "muon", "ema": {"decay": 0.9}},
        {"optimizer": "adagrad", "schedule": "one_cycle", "patience": 3, "ema": {"every": 2}},
    ],
    ids=["cg", "lbfgs", "muon-ema", "adagrad-best-ema"],
)
def test_stopped_and_run_again_is_as_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    ws = make_signalling(tmp_path, train=settings)
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    train(ws)
    expected = outs(ws)
    for calls in (2, 9):
        monkeypatch.setenv("SIGNAL_AT", str(calls))
        with pytest.raises(Interrupted):
            train(ws)
        monkeypatch.setenv("SIGNAL_AT", "0")
        train(ws)
        assert outs(ws) == expected
