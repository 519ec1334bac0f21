"""Models on disk and the task that a spec sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipelines.models import ModelConfig, load_model, save_model, task_of
from pipelines.models.saved import weights
from storage.errors import DataError, FormatError, ParamsError

SPEC = {
    "inputs": {"x": {"dtype": "float32", "shape": [3]}}, "target": {"name": "y", "dtype": "int64"},
    "classes": ["a", "b"], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
}  # fmt: skip
CONFIG = ModelConfig({"name": "mlp", "args": {"hidden": [5]}}, SPEC, None, "classification", "d" * 64)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path, weights(CONFIG.build(1)), CONFIG)
    return tmp_path


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    model, config = load_model(saved)
    assert config == CONFIG
    assert not model.training
    x = torch.randn(4, 3)
    assert torch.equal(model(x), CONFIG.build(1).eval()(x))


def test_equal_models_are_equal_bytes(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    save_model(other, weights(CONFIG.build(1)), CONFIG)
    for name in ("model.safetensors", "config.json"):
        assert (saved / name).read_bytes() == (other / name).read_bytes()


def test_damage_is_named(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"format": 9}))
    with pytest.raises(FormatError, match="model format 9"):
        load_model(saved)
    (saved / "config.json").write_text(json.dumps(config | {"model": {"name": "mlp", "args": {"hidden": [6]}}}))
    with pytest.raises(ParamsError, match="don't fit model 'mlp'"):
        load_model(saved)
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(FormatError, match="not a safetensors file"):
        load_model(saved)
    with pytest.raises(FormatError, match="holds no trained model"):
        load_model(saved / "elsewhere")


def test_tasks_follow_from_the_spec() -> None:
    assert task_of({"vocab_size": 5}).name == "language"
    assert task_of(SPEC).name == "classification"
    assert task_of(SPEC | {"classes": None, "target": {"name": "y", "dtype": "float32"}}).name == "regression"
    with pytest.raises(DataError, match=r"set `curate.label`"):
        task_of(SPEC | {"target": None})
    with pytest.raises(DataError, match=r"set `curate.target`"):
        task_of(SPEC | {"classes": None})


def test_language_pairs_are_shifted_by_one_and_losses_are_sums() -> None:
    task, cpu = task_of({"vocab_size": 5}), torch.device("cpu")
    inputs, targets = task.pair({"tokens": np.array([[1, 2, 3, 4]], np.uint16)}, cpu)
    assert (inputs.tolist(), targets.tolist()) == ([[1, 2, 3]], [[2, 3, 4]])
    logits = torch.randn(1, 3, 5)
    by_hand = -sum(logits[0, i].log_softmax(-1)[targets[0, i]] for i in range(3))
    assert torch.allclose(task.loss(logits, targets), by_hand)
    smoothed = F.cross_entropy(logits[0], targets[0], reduction="sum", label_smoothing=0.2)
    assert torch.allclose(task.loss(logits, targets, 0.2), smoothed)


def test_a_regressions_loss_is_in_units_of_the_targets_deviation() -> None:
    task = task_of({"inputs": {}, "target": {"name": "y", "dtype": "float32", "std": 4.0}, "classes": None})
    loss = task.loss(torch.tensor([8.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert float(loss) == 4.0
    assert task.summary(4.0, 0.0)["rmse"] == 8.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch imports its compiler
def test_a_compiled_models_weights_have_the_plain_models_names() -> None:
    """Wherever in it something is compiled; nothing is compiled before it runs."""
    plain, whole, part = CONFIG.build(1), torch.compile(CONFIG.build(1)), CONFIG.build(1)
    name, child = next(iter(part.named_children()))
    setattr(part, name, torch.compile(child))
    assert any("_orig_mod" in name for name in part.state_dict())
    for compiled in (whole, part, part.state_dict()):
        assert weights(compiled).keys() == weights(plain).keys()
