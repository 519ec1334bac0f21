"""evaluate.metrics: torchmetrics' by name and a class of one's own, over all batches, beside the baselines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_samples import make_points, make_text

from pipelines.evaluation.measure import measure
from pipelines.evaluation.metrics.custom import CustomMetrics
from pipelines.evaluation.metrics.names import snake
from pipelines.models import ModelConfig, task_of
from pipelines.params import Gate, Metric
from pipelines.params.schema.flat import numbers
from pipelines.release.gate import judge
from pipelines.workspace import Workspace
from storage.errors import ParamsError

OWN = """
class Confident:
    '''The share of the answers above a probability.'''

    def __init__(self, above=0.5):
        self.above, self.seen, self.many = above, 0, 0

    def update(self, answers, targets):
        self.seen += len(targets)
        self.many += int((answers.max(-1).values > self.above).sum())

    def compute(self):
        return self.many / self.seen

class Matrix(Confident):
    def compute(self):
        return [[1.0, 2.0]]

class NoMetric: pass
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(OWN)


def measured(ws: Workspace) -> dict[str, Any]:
    zone = ws.zone("shards")
    spec = zone.manifest().header["spec"]
    seq_len = ws.params.stream.seq_len if "vocab_size" in spec else None
    config = ModelConfig(ws.params.model.model_dump(), spec, seq_len, task_of(spec).name, "")
    return measure(config.build(3), config, zone, zone.manifest(), ws.params).metrics


def test_classification_by_batches_equals_the_figures_of_the_confusion_matrix(tmp_path: Path) -> None:
    custom = [
        "F1Score", "MulticlassAUROC", {"name": "F1Score", "args": {"average": None}, "key": "f1_by_class"},
        {"name": "Accuracy", "args": {"average": "micro"}, "key": "share_right"},
        {"name": "own_metrics:Confident", "args": {"above": 0.0}},
    ]  # fmt: skip
    ws = make_points(tmp_path, evaluate={"batch_size": 7, "metrics": custom})
    metrics = measured(ws)
    assert metrics["share_right"] == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert metrics["f1_by_class"] == pytest.approx(metrics["f1"], abs=1e-6)
    assert metrics["confident"] == 1.0
    assert 0 <= metrics["multiclass_auroc"] <= 1
    assert metrics["baseline"]["majority"]
    gate = Gate(metric="share_right", mode="max", bound=metrics["accuracy"] - 0.01)
    assert judge(gate, numbers(json.loads(json.dumps(metrics))), None).promoted


def test_regression_and_text(tmp_path: Path) -> None:
    ws = make_points(tmp_path / "points", target="value", evaluate={"metrics": ["MeanAbsoluteError", "R2Score"]})
    metrics = measured(ws)
    assert metrics["mean_absolute_error"] == pytest.approx(metrics["mae"], rel=1e-4)
    assert metrics["r2_score"] == pytest.approx(metrics["r2"], rel=1e-4)
    perplexity = {"name": "Perplexity", "key": "torch_perplexity"}
    ws = make_text(tmp_path / "text", evaluate={"metrics": [perplexity, "MulticlassAccuracy"]})
    metrics = measured(ws)
    assert metrics["torch_perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-4)
    assert 0 <= metrics["multiclass_accuracy"] < 0.5


def test_names_in_the_report() -> None:
    assert [snake(n) for n in ("F1Score", "MulticlassAUROC", "R2Score")] == ["f1_score", "multiclass_auroc", "r2_score"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("F1Scor", "Did you mean 'F1Score'?"),
        (Metric(name="F1Score", args={"avrage": "macro"}), "Did you mean 'average'?"),
        (Metric(name="F1Score", args={"average": "loudest"}), "cannot be made"),
        ("own_metrics:Confidnt", "Did you mean 'Confident'?"),
        ("own_metrics:NoMetric", "has no update and compute"),
        ("own_metrics:Matrix", "must give a number"),
        ("ConfusionMatrix", "must give a number"),
        ("MeanSquaredError", "cannot take answers [6, 3]"),
        (Metric(name="F1Score", key="accuracy"), "is measured anyway"),
    ],
)
def test_what_cannot_be_measured_is_explained(entry: str | Metric, said: str) -> None:
    spec = {"classes": ["a", "b", "c"]}

    def measured() -> None:
        custom = CustomMetrics([entry], ModelConfig({}, spec, None, "classification", ""))
        custom.update(torch.rand(6, 3), torch.tensor([0, 1, 2, 2, 1, 0]))
        custom.into({"accuracy": 0.5})

    with pytest.raises(ParamsError) as caught:
        measured()
    assert said in str(caught.value)
