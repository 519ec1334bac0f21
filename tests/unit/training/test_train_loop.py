"""The loop, in this process: it learns, stops, resumes exactly, and says what is wrong."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from support.training_samples import losses, make_points, make_signalling, make_text, outs, with_train, without_mlflow

from pipelines.training import train
from pipelines.workspace import Workspace
from storage.errors import DataError, Interrupted, ParamsError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


@pytest.mark.parametrize("make", [make_text, make_points])
def test_it_learns_and_leaves_its_outs(make: object, tmp_path: Path) -> None:
    ws = make(tmp_path, train={"steps": 60, "eval_every": 20})
    metrics = train(ws)
    assert losses(ws)[-1] < 0.6 * losses(ws)[0]
    assert metrics == json.loads(ws.metrics("train").read_text())
    assert metrics["manifest"] == ws.zone("shards").manifest().digest
    config = json.loads((ws.model / "config.json").read_text())
    assert config["format"] == 1
    assert config["manifest"] == metrics["manifest"]
    assert json.loads((ws.model / "run.json").read_text())["experiment"] == "test"
    header, *rows = ws.plots("val.csv").read_text().splitlines()
    assert header.startswith("step,val_loss")
    assert [row.split(",")[0] for row in rows] == ["20", "40", "60"]
    assert not list((ws.state / "checkpoints").iterdir())


def test_two_trainings_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    first, second = (make_text(tmp_path / name) for name in "ab")
    train(first)
    train(second)
    assert outs(first) == outs(second)
    other = make_text(tmp_path / "c", seed=4)
    train(other)
    assert outs(other)["data/model/model.safetensors"] != outs(first)["data/model/model.safetensors"]


def test_stopped_at_any_step_and_run_again_is_as_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_signalling(tmp_path, train={"patience": 3})
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    train(whole)
    expected = outs(whole)
    handler = signal.getsignal(signal.SIGTERM)
    for step in range(1, 13):
        monkeypatch.setenv("SIGNAL_AT", str(step))
        with pytest.raises(Interrupted, match=f"after step {step} of 12") as caught:
            train(whole)
        assert caught.value.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) is handler
        monkeypatch.setenv("SIGNAL_AT", "0")
        train(whole)
        assert outs(whole) == expected, f"after a stop at step {step}"


def test_a_signal_in_an_evaluation_cuts_it_short_and_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = make_points(tmp_path)
    train(ws)
    expected = outs(ws)
    from pipelines.models.architectures.mlp import MLP

    forward, seen = MLP.forward, []

    def signalling(self: MLP, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            seen.append(len(x))
            if len(seen) == 3:  # the first batch of the second evaluation, of two batches each
                os.kill(os.getpid(), signal.SIGINT)
        return forward(self, x)

    monkeypatch.setattr(MLP, "forward", signalling)
    with pytest.raises(Interrupted, match="after step 8") as caught:
        train(ws)
    assert caught.value.exit_code == 130
    assert len(seen) == 3
    train(ws)
    assert outs(ws) == expected


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    # Thirty samples, a large rate and 300 steps: it overfits for certain.
    ws = make_points(
        tmp_path,
        rows=(30, 24, 24),
        model={"name": "mlp", "args": {"hidden": [64, 64]}},
        train={"steps": 300, "eval_every": 5, "patience": 4, "lr": 0.03, "weight_decay": 0.0},
    )
    metrics = train(ws)
    rows = [line.split(",") for line in ws.plots("val.csv").read_text().splitlines()[1:]]
    best = min(rows, key=lambda row: float(row[1]))
    assert metrics["stopped_early"]
    assert metrics["steps"] == int(rows[-1][0]) == int(best[0]) + 4 * 5
    assert metrics["step"] == int(best[0])
    assert metrics["val_loss"] == float(best[1])
    assert _val_loss(ws) == pytest.approx(metrics["val_loss"], rel=1e-5)


def test_the_best_weights_survive_an_interruption_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = {"steps": 300, "eval_every": 5, "patience": 4, "lr": 0.05, "weight_decay": 0.0, "warmup": 0.9}
    ws = make_signalling(tmp_path, rows=(30, 24, 24), train=rising)
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    metrics = train(ws)
    assert metrics["stopped_early"]
    expected = outs(ws)
    monkeypatch.setenv("SIGNAL_AT", str(metrics["step"] + 7))
    with pytest.raises(Interrupted):
        train(ws)
    monkeypatch.setenv("SIGNAL_AT", "0")
    train(ws)
    assert outs(ws) == expected


def _val_loss(ws: Workspace) -> float:
    from pipelines.evaluation import evaluate_model
    from pipelines.models import load_model

    params = ws.params.model_copy(update={"evaluate": ws.params.evaluate.model_copy(update={"split": "val"})})
    zone = ws.zone("shards")
    return float(evaluate_model(*load_model(ws.model), zone, zone.manifest(), params)["loss"])


def test_accumulation_changes_rounding_only(tmp_path: Path) -> None:
    curves = []
    for pieces in (1, 4, 64):  # 64: more pieces than samples
        ws = make_text(tmp_path / str(pieces), train={"accumulate": pieces})
        train(ws)
        curves.append(losses(ws))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_stopping_before_the_first_point_of_the_curve(tmp_path: Path) -> None:
    ws = make_points(tmp_path, train={"lr": 1e-9, "eval_every": 1, "patience": 1, "log_every": 1000, "warmup": 0.99})
    metrics = train(ws)
    assert metrics["train_loss"] == pytest.approx(1.4, abs=0.5)
    assert losses(ws) == []


def test_epochs_are_counted_in_batches_and_may_be_a_part(tmp_path: Path) -> None:
    ws = make_points(tmp_path, train={"steps": None, "epochs": 1.5})  # 70 samples, 16 a batch: 5 batches an epoch
    assert train(ws)["steps"] == 8


def test_a_loss_that_is_not_finite_stops_with_step_samples_and_settings(tmp_path: Path) -> None:
    ws = make_points(tmp_path, train={"lr": 10.0, "clip_norm": None, "steps": 400}, target="value")
    (tmp_path / "exploding.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, in_features):\n"
        "        super().__init__(); self.head = nn.Linear(in_features, 1); self.calls = 0\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        return self.head(x)[:, 0] * (float('nan') if self.calls == 5 else 1.0)\n"
    )
    ws = Workspace(ws.root, ws.project, ws.params.model_copy(update={"model": _own("exploding:Model")}))
    with pytest.raises(DataError) as caught:
        train(ws)
    for said in ("Step 5:", "loss nan", "train.lr (now 10)", "train.clip_norm", "train:"):
        assert said in str(caught.value)
    assert not ws.model.exists()


def _own(name: str) -> object:
    from pipelines.params import Model

    return Model(name=name)


def test_a_bad_import_path_is_a_params_error_before_any_out(tmp_path: Path) -> None:
    ws = make_points(tmp_path, model={"name": "no_such_package.nets:Net"})
    with pytest.raises(ParamsError, match=r"model.name='no_such_package.nets:Net' does not import"):
        train(ws)
    assert not ws.model.exists()
    assert not (ws.state / "checkpoints").exists()


def test_without_a_val_split_there_is_no_patience(tmp_path: Path) -> None:
    ws = make_points(tmp_path, rows=(40, 0, 10), train={"patience": 2})
    with pytest.raises(ParamsError, match=r"train.patience=2 needs a val split"):
        train(ws)
    metrics = train(with_train(ws, patience=None))
    assert "val_loss" not in metrics
    assert metrics["step"] == 12


def test_too_long_windows_are_explained(tmp_path: Path) -> None:
    ws = make_text(tmp_path, stream={"batch_size": 4, "seq_len": 5000})
    with pytest.raises(DataError, match=r"lower stream.seq_len"):
        train(ws)


def test_a_changed_parameter_does_not_go_on_from_the_others_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = make_signalling(tmp_path)
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", "6")
    with pytest.raises(Interrupted):
        train(ws)
    with pytest.raises(Interrupted, match="after step 6"):
        train(with_train(ws, lr=0.02))  # from the start again: it gets to its sixth call at step 6


def test_an_absent_device_is_explained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        device, said = "cuda:99", "needs cuda:99"
    else:
        device, said = "cuda", "needs cuda:0, but what this rank sees is 1 x cpu"
    ws = make_points(tmp_path, train={"device": device})
    with pytest.raises(ParamsError, match=said):
        train(ws)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_too(tmp_path: Path, precision: str) -> None:
    ws = make_points(tmp_path, train={"precision": precision, "steps": 60})
    train(ws)
    assert losses(ws)[-1] < 0.6 * losses(ws)[0]
