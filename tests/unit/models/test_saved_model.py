"""Models on disk and the task that a spec sets."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipelines.models import ModelConfig, Own, load_model, save_model, task_of
from pipelines.models.saved import check_weights, load_config, weights
from storage.errors import DataError, DigestError, FormatError, ParamsError

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
    for name in ("model.safetensors", "model.safetensors.b3", "config.json"):
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
    (saved / "model.safetensors.b3").unlink()
    with pytest.raises(FormatError, match="not a safetensors file"):
        load_model(saved)
    with pytest.raises(FormatError, match="holds no trained model"):
        load_model(saved / "elsewhere")


def test_a_configuration_chooses_no_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in config.json: what params.yaml doesn't name is not imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'it_ran')!r}).touch()\n")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model": {"name": "evil:Net", "args": {}}}))
    for own in (Own(), Own(("nets:Net",)), Own(("evil",)), Own(("evil:Other",))):
        with pytest.raises(ParamsError, match=r"config.json names the model 'evil:Net', which was not imported"):
            load_model(saved, own)
        with pytest.raises(ParamsError, match=r"code runs only where params.yaml names it"):
            load_config(saved, own)
    assert not (tmp_path / "it_ran").exists()
    with pytest.raises(ParamsError, match=r"'evil' has no|evil has no"):
        load_model(saved, Own(("evil:Net",)))
    assert (tmp_path / "it_ran").exists(), "or this test shows nothing"


def test_a_document_mask_by_its_former_name_is_read(saved: Path) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"documents": True}))
    assert load_config(saved).document_mask is True


@pytest.mark.parametrize("model", [None, "mlp", {}, {"name": "mlp"}, {"name": "mlp", "args": "x"}, {"args": {}}])
def test_a_malformed_configuration_is_named(saved: Path, model: object) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model": model}))
    with pytest.raises(FormatError, match="not a model's configuration"):
        load_model(saved)
    (saved / "config.json").write_text(json.dumps(config | {"more": 1}))
    with pytest.raises(FormatError, match="not a model's configuration"):
        load_model(saved)


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "null", "{", '{"format": 1}', '{"format": 1, "more": 2}', "[" * 100_000, '{"format": 1, "model": 3}'],
)
def test_a_configuration_that_is_none_is_named(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json: not a model's configuration"):
        load_model(saved)


def test_a_configurations_fields_have_their_types(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    for name, wrong in {"model": [], "spec": "x", "seq_len": "8", "task": 1, "document_mask": 1, "unknown": 0}.items():
        (saved / "config.json").write_text(json.dumps(config | {name: wrong}))
        with pytest.raises(FormatError, match=rf"not a model's configuration \({name}\b"):
            load_model(saved)


TEXT = {"vocab_size": 257, "dtype": "uint16", "separator": 256, "encoding": "bytes"}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (TEXT | {"vocab_size": "257"}, r"spec\.vocab_size: .*valid integer \(given: '257'\)"),
        (TEXT | {"vocab_size": 0}, r"spec\.vocab_size: .*greater than or equal to 1 \(given: 0\)"),
        (TEXT | {"vocab_size": 70_000}, r"vocab_size=70000 is more than dtype='uint16'"),
        (TEXT | {"separator": 257}, r"separator=257 is none of vocab_size=257 tokens"),
        (TEXT | {"separators": 256}, r"spec\.separators: unknown\. Did you mean 'separator'"),
        (SPEC | {"inputs": {"x": {"dtype": "float33", "shape": [3]}}}, r"spec\.inputs\.x\.dtype: .*'float33'"),
        (SPEC | {"inputs": {"x": {"dtype": "float32", "shape": [-3]}}}, r"spec\.inputs\.x\.shape\.0: .*given: -3"),
        (SPEC | {"classes": ["a", 1]}, r"spec\.classes\.1: .*valid string \(given: 1\)"),
        (SPEC | {"mean": [0.0, 0.0]}, r"mean has 2 numbers for inputs of shape \[3\]"),
        (SPEC | {"std": [1.0, -1.0, 1.0]}, r"spec\.std\.1: .*\(given: -1\.0\)"),
        ({key: value for key, value in SPEC.items() if key != "inputs"}, r"spec\.inputs: missing"),
    ],
)
def test_every_wrong_value_of_a_spec_is_named_with_its_file_and_key(
    saved: Path, spec: dict[str, object], told: str
) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"spec": spec}))
    with pytest.raises(FormatError, match=rf"config\.json: not a model's configuration \(.*{told}"):
        load_config(saved)


@pytest.mark.parametrize("args", [{"hidden": ["5"]}, {"hiden": [5]}])
def test_arguments_that_make_no_model_are_named_with_their_file(saved: Path, args: dict[str, object]) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model": {"name": "mlp", "args": args}}))
    with pytest.raises(ParamsError, match=r"config\.json: .*model\.args"):
        load_model(saved)


def test_no_flipped_bit_of_the_weights_is_loaded(saved: Path) -> None:
    file = saved / "model.safetensors"
    data = file.read_bytes()
    for place in range(0, len(data), 7):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        for look in (load_model, check_weights):
            with pytest.raises(DigestError, match=r"model\.safetensors: .*model\.safetensors\.b3 says"):
                look(saved)
    file.write_bytes(data)
    for line in ("", "0" * 64, "no digest at all\n", f"{'0' * 63}g  model.safetensors\n"):
        (saved / "model.safetensors.b3").write_text(line)
        with pytest.raises(FormatError, match=r"not the digest of model\.safetensors"):
            load_model(saved)


def test_a_model_from_before_there_were_digests_is_loaded(saved: Path) -> None:
    (saved / "model.safetensors.b3").unlink()
    check_weights(saved)
    assert load_model(saved)[1] == CONFIG


def test_weights_of_another_type_are_not_converted_without_a_word(saved: Path) -> None:
    doubled = {name: tensor.double() for name, tensor in weights(CONFIG.build(1)).items()}
    save_model(saved, doubled, CONFIG)
    with pytest.raises(ParamsError, match=r"is torch\.float64 there, and torch\.float32 here"):
        load_model(saved)


def test_no_flipped_bit_of_a_models_header_or_configuration_is_a_foreign_error(saved: Path) -> None:
    (saved / "model.safetensors.b3").unlink()  # before any of it is read, it tells all damage
    for file in (saved / "config.json", saved / "model.safetensors"):
        data = file.read_bytes()
        end = len(data) if file.suffix == ".json" else 8 + int.from_bytes(data[:8], "little")
        for bit in range(0, 8 * end, 5):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bytes(changed))
            with suppress(FormatError, ParamsError, DataError):
                load_model(saved)
        file.write_bytes(data)


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
