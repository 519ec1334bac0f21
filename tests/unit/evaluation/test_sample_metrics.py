"""Figures of classifiers and regressions, against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.training_samples import make_points
from torch import nn

from pipelines.evaluation import evaluate_model
from pipelines.evaluation.plots import matrix, png
from pipelines.evaluation.samples import by_class, errors
from pipelines.models import ModelConfig
from pipelines.workspace import Workspace
from storage.shards import Shard


class Rough(nn.Module):
    """Sees the first feature only, so that some classes are never answered."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([3 - x[:, 0], -x[:, 1].abs(), x[:, 0] - 3, torch.full((len(x),), -9.0)], 1)


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] + 2.5


def measure(ws: Workspace, model: nn.Module) -> dict:
    zone = ws.zone("shards")
    manifest = zone.manifest()
    config = ModelConfig({}, manifest.header["spec"], None, "", manifest.digest)
    return evaluate_model(model, config, zone, manifest, ws.params)


def held_out(ws: Workspace, split: str = "test") -> tuple[torch.Tensor, np.ndarray]:
    zone = ws.zone("shards")
    shards = [Shard.open(zone.local_path(path)) for path in zone.manifest().select(split)["path"].to_pylist()]
    return (
        torch.from_numpy(np.concatenate([shard.column("x") for shard in shards])),
        np.concatenate([shard.column("label") for shard in shards]),
    )


def test_classification_agrees_with_scikit_learn(tmp_path: Path) -> None:
    ws = make_points(tmp_path, rows=(70, 5, 90))
    found = measure(ws, Rough())
    x, truth = held_out(ws)
    logits = Rough()(x)
    answer = logits.argmax(1).numpy()
    assert len(set(truth)) == 4
    assert set(answer) < set(truth)
    assert found["samples"] == 90
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, answer), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, answer, average="macro", zero_division=0), abs=1e-6)
    assert found["loss"] == pytest.approx(sk.log_loss(truth, logits.softmax(1).numpy(), labels=range(4)), abs=1e-5)
    each = sk.f1_score(truth, answer, average=None, zero_division=0)
    assert list(found["f1"].values()) == pytest.approx(list(each), abs=1e-6)
    most = np.bincount(held_out(ws, "train")[1]).argmax()
    assert found["baseline"]["majority"]["accuracy"] == pytest.approx((truth == most).mean(), abs=1e-6)


def test_by_class_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    rows = by_class(sk.confusion_matrix(truth, answer), ["a", "b", "c"])
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, answer)
    assert [row["precision"] for row in rows] == pytest.approx(list(precision))
    assert [row["recall"] for row in rows] == pytest.approx(list(recall))
    assert [row["f1"] for row in rows] == pytest.approx(list(f1))
    assert [row["samples"] for row in rows] == list(support)


def test_regression_agrees_with_scikit_learn_and_the_mean_has_no_r2(tmp_path: Path) -> None:
    ws = make_points(tmp_path, target="value", rows=(70, 5, 90))
    found = measure(ws, Half())
    x, truth = held_out(ws)
    answer = Half()(x).numpy()
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, answer), abs=1e-5)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, answer), abs=1e-5)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, answer), abs=1e-5)
    baseline = found["baseline"]["mean"]
    assert baseline["r2"] <= 0 < found["r2"]
    assert baseline["rmse"] > found["rmse"]


def test_errors_of_a_constant_truth() -> None:
    assert errors(np.ones(3), np.full(3, 2.0)) == {"rmse": 1.0, "mae": 1.0, "r2": 0.0}


def test_equal_figures_are_equal_bytes_without_versions() -> None:
    drawn = [png(matrix(np.array([[5, 1], [0, 4]]), ["no", "yes"])) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert b"Software" not in drawn[0]
    assert png(matrix(np.array([[5, 1], [1, 4]]), ["no", "yes"])) != drawn[0]
