"""What is checked before training is what is measured after it."""

from pathlib import Path
from typing import Any

import pytest
import torchmetrics
import yaml
from conftest import Run
from support.training_samples import make_points, make_text, with_domains
from torchmetrics import classification, regression, text

from pipelines.evaluation import evaluate_model
from pipelines.evaluation.metrics.names import RESERVED, names_of, torchmetrics_names
from pipelines.models import ModelConfig, task_of
from pipelines.params.schema.flat import numbers
from pipelines.reproduce.preflight import check_shards
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError
from storage.manifest import Manifest

METRICS: dict[str, Any] = {
    "text": [{"name": "Perplexity", "key": "again"}, {"name": "MulticlassAccuracy", "key": "right"}],
    "many": [],
    "class": ["F1Score", {"name": "F1Score", "args": {"average": None}, "key": "by_class"}],
    "value": ["MeanAbsoluteError"],
}


@pytest.mark.parametrize("domains", [False, True])
@pytest.mark.parametrize("kind", ["text", "tokens", "many", "documents", "class", "value"])
def test_the_names_are_those_of_the_figures(kind: str, domains: bool, tmp_path: Path) -> None:
    evaluate = {"metrics": METRICS.get(kind, METRICS["text"])}
    if kind in ("class", "value"):
        ws = make_points(tmp_path, target=kind, evaluate=evaluate)
    else:
        ws = make_text(tmp_path, evaluate=evaluate | ({"samples": "documents"} if kind == "documents" else {}))
    manifest = with_domains(ws) if domains else ws.zone("shards").manifest()
    changes = {"tokens": {"encoding": "bpe"}, "many": {"vocab_size": 2000}}.get(kind, {})
    manifest = Manifest(manifest.header | {"spec": manifest.header["spec"] | changes}, manifest.table)
    spec, model = manifest.header["spec"], ws.params.model.model_dump()
    config = ModelConfig(model, spec, 16 if "vocab_size" in spec else None, task_of(spec).name, "")
    figures = numbers(evaluate_model(config.build(), config, ws.zone("shards"), manifest, ws.params))
    for known in (spec, None) if kind in ("text", "documents", "class", "value") else (spec,):
        names = names_of(config.get_task().name, ws.params, known, manifest.domains)
        assert [name for name in figures if name not in names] == []
        families = {family.rstrip(".") for family in names.families}
        assert set(names.exact) - set(figures) <= families, "a family's own name is a figure, or it has members"
    top = set(evaluate_model(config.build(), config, ws.zone("shards"), manifest, ws.params))
    assert top - set(names.exact) <= {*RESERVED, "by_class"}


def test_torchmetrics_names_are_read_from_its_files() -> None:
    known = {
        name
        for module in (torchmetrics, classification, regression, text)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, torchmetrics.Metric)
    }
    assert known <= set(torchmetrics_names())
    assert "NoSuchMetric" not in torchmetrics_names()


def with_gate(ws: Workspace, gate: dict[str, Any], **sections: Any) -> Workspace:
    values = yaml.safe_load((ws.root / "params.yaml").read_text())
    values |= {"promote": {"gate": gate}} | sections
    (ws.root / "params.yaml").write_text(yaml.safe_dump(values))
    return Workspace.open(ws.root)


GOOD = {"metric": "accuracy"}


@pytest.mark.parametrize(
    ("gate", "sections", "said"),
    [
        ({"metric": "f1.nwe"}, {}, r"promote.gate.metric='f1.nwe'.* Did you mean 'f1.nw'\?"),
        ({"metric": "domains.code.accuracy"}, {}, "evaluate measures no such figure"),
        (GOOD, {"evaluate": {"metrics": [{"name": "F1Score", "args": {"avrage": "macro"}}]}}, "Did you mean 'average'"),
        (GOOD, {"evaluate": {"metrics": ["ConfusionMatrix"]}}, "confusion_matrix gives .* must give a number"),
        (GOOD, {"evaluate": {"metrics": ["MeanSquaredError"]}}, r"mean_squared_error cannot take answers \[8, 4\]"),
        (GOOD, {"evaluate": {"metrics": [{"name": "F1Score", "key": "accuracy"}]}}, "'accuracy' is measured anyway"),
        (GOOD, {"evaluate": {"metrics": [{"name": "F1Score", "key": "task"}]}}, "'task' is measured anyway"),
    ],
)
def test_with_the_shards_at_hand_all_of_it_is_tried(
    tmp_path: Path, gate: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    ws = make_points(tmp_path)
    check_shards(with_gate(ws, GOOD))
    with pytest.raises(ParamsError, match=said):
        check_shards(with_gate(ws, gate, **sections))


def test_the_train_stage_tries_it_before_it_trains(tmp_path: Path, run: Run) -> None:
    ws = with_gate(make_points(tmp_path), {"metric": "f1.nwe"})
    done = run("shardline", "train", cwd=ws.root, code=2)
    assert "promote.gate.metric='f1.nwe'" in done.stderr
    assert not ws.model.exists()


def test_a_split_that_holds_nothing_is_told_before_training(tmp_path: Path) -> None:
    ws = make_points(tmp_path / "a", rows=(40, 0, 20))
    check_shards(ws)
    with pytest.raises(DataError, match=r"no samples in split 'val'.*set evaluate.split to one of: test\."):
        check_shards(with_gate(ws, GOOD, evaluate={"split": "val"}))
    keeping = ws.params.train.model_dump() | {"checkpoints": {"keep_best": 2}}
    with pytest.raises(ParamsError, match=r"train.checkpoints.keep_best=2 needs a val split, but the shards have none"):
        check_shards(with_gate(ws, GOOD, train=keeping, evaluate={}))
    with pytest.raises(DataError, match="no samples in split 'test'"):
        check_shards(make_points(tmp_path / "b", rows=(40, 20, 0)))


def test_a_gate_on_bytes_that_nobody_knows_says_so(tmp_path: Path) -> None:
    ws = make_text(tmp_path)
    zone = ws.zone("shards")
    manifest = zone.manifest()
    gate = {"metric": "bits_per_byte", "mode": "min"}
    check_shards(with_gate(ws, gate))
    about = {name: manifest.header[name] for name in ("kind", "counts", "parents")}
    zone.commit(
        Manifest.build("shards", manifest.records(), spec=manifest.header["spec"] | {"encoding": "bpe"}, **about)
    )
    with pytest.raises(ParamsError, match=r"no such figure.*bytes nobody knows: their encoding is 'bpe'"):
        check_shards(with_gate(ws, gate))
    check_shards(with_gate(ws, {"metric": "loss", "mode": "min", "baseline": "baseline.bigram.loss"}))
