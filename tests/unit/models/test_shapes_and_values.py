"""Answers and targets that don't go together are refused with their shapes, or the number that is no class."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_samples import make_points, make_text, without_mlflow
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipelines.evaluation import evaluate_model
from pipelines.models import ModelConfig, Task, build_model, task_of
from pipelines.params.train.training import MODELS
from pipelines.training import train
from pipelines.training.session import aim
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError, ShardlineError
from storage.manifest import Manifest
from storage.shards import SUFFIX, encode_samples

CPU = torch.device("cpu")
TEXT = {"vocab_size": 9}
IMAGES = {"inputs": {"x": {"dtype": "uint8", "shape": [8, 8, 3]}}, "target": {"name": "y", "dtype": "int64"},
          "classes": ["a", "b", "c"], "mean": [1.0] * 3, "std": [1.0] * 3}  # fmt: skip
NUMBERS = IMAGES | {"classes": None, "target": {"name": "y", "dtype": "float32"}}
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {"dim": 8, "layers": 1, "heads": 2}, "mlp": {"hidden": [4]}, "cnn": {"channels": [4]},
    "resnet": {"widths": [8], "depths": [1]}, "vit": {"dim": 8, "layers": 1, "heads": 2},
}  # fmt: skip
CASES = [(name, spec) for name in MODELS.members for spec in ((TEXT,) if name == "transformer" else (IMAGES, NUMBERS))]


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_every_model_of_ours_answers_as_its_task_asks(name: str, spec: dict[str, Any]) -> None:
    task, model = task_of(spec), build_model(name, SMALL[name], spec, 5)
    inputs, targets = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2)
    if task.name == "language":
        inputs, targets = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
    answers = model(inputs)
    task.check_shapes(answers, targets)
    wider = answers[..., None] if task.classes is None else answers[..., :-1]
    with pytest.raises(ParamsError, match=r"the model answers \[2, .* to targets \[2.*\], but must give \[2"):
        task.check_shapes(wider, targets)


sizes = st.sampled_from([1, 2, 3])
shapes = st.lists(sizes, max_size=3).map(tuple)
batches = st.lists(sizes, min_size=1, max_size=3).map(tuple)


@given(spec=st.sampled_from([TEXT | {"vocab_size": 3}, IMAGES, NUMBERS]), answers=shapes, targets=batches)
def test_of_any_two_shapes_the_loss_is_right_or_refused(spec: dict[str, Any], answers: Any, targets: Any) -> None:
    task, random = task_of(spec), torch.Generator().manual_seed(0)
    answer = torch.randn(answers, generator=random)
    target = torch.randn(targets, generator=random) if task.classes is None else torch.randint(3, targets)
    if answers != (targets if task.classes is None else (*targets, 3)):
        for refuses in (task.loss, task.hits) if task.name == "classification" else (task.loss,):
            with pytest.raises(ParamsError, match=re.escape(f"{list(answers)} to targets {list(targets)}")):
                refuses(answer, target)
        return
    loss, hits = task.loss(answer, target), task.hits(answer, target)
    if task.classes is None:
        wanted = [(a - b) ** 2 for a, b in zip(answer.flatten(), target.flatten(), strict=True)]
    else:
        wanted = [-a.log_softmax(-1)[b] for a, b in zip(answer.reshape(-1, 3), target.flatten(), strict=True)]
    assert float(loss) == pytest.approx(float(sum(wanted)), rel=1e-5)
    assert int(hits) <= target.numel()


@pytest.mark.parametrize("spec", [TEXT, IMAGES, NUMBERS])
def test_no_device_is_waited_for(spec: dict[str, Any]) -> None:
    """A fake tensor has no values, so whatever would ask a device for one fails."""
    task = task_of(spec)
    with FakeTensorMode():
        targets = torch.zeros((4, 5) if task.name == "language" else (4,))
        answers = torch.zeros(*targets.shape, *([] if task.classes is None else [task.classes]))
        wanted = targets if task.classes is None else targets.long()
        task.hits(answers, wanted)
        with pytest.raises(Exception, match=r"Data dependent|data-dependent|_local_scalar_dense"):
            task.loss(answers, wanted).item()


@pytest.mark.parametrize("label", [-100, -1, 3, 2**40])
def test_a_label_that_is_no_class_is_refused_on_the_host(label: int) -> None:
    task, x = task_of(IMAGES), np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=rf"y holds {label}, but there are 3 classes, numbered from 0"):
        task.pair({"x": x, "y": np.array([0, 1, label, 2])}, CPU)
    task.pair({"x": x, "y": np.array([0, 1, 2, 2])}, CPU)
    with pytest.raises(DataError, match=r"targets 'y' of shape \[4, 1\], but must be one a sample"):
        task.pair({"x": x, "y": np.zeros((4, 1), np.int64)}, CPU)


def test_a_token_that_is_not_in_the_vocabulary_is_refused_on_the_host() -> None:
    with pytest.raises(DataError, match="tokens holds 9, but there are 9 tokens, numbered from 0"):
        task_of(TEXT).pair({"tokens": np.array([[1, 2, 9]], np.uint16)}, CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": IMAGES["inputs"] | {"mask": {"dtype": "uint8", "shape": [8, 8]}}}, "so mask would be left out"),
        (
            {"inputs": {"x": {"dtype": "uint8", "shape": None, "codec": "image"}}},
            r"different shapes.*shard\.image_size",
        ),
        ({"inputs": {"x": {"dtype": "uint8", "shape": None, "codec": "bytes"}}}, r"different shapes \(codec 'bytes'\)"),
        ({"target": {"name": "y", "dtype": "int64", "shape": [2]}}, r"target 'y' has the shape \[2\] a sample"),
        ({"target": {"name": "y", "dtype": "float32"}}, "'y' has classes but is float32, not whole numbers"),
    ],
)
def test_what_a_model_would_not_be_given_is_refused_before_training(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        task_of(IMAGES | changes)
    task_of(IMAGES | {"inputs": {"x": {"dtype": "uint8", "shape": [8, 8, 3], "codec": "image"}}})


OWN = """
from torch import nn

class Wide(nn.Module):
    def __init__(self, *, in_features, num_classes):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes or 1)

    def forward(self, x):
        answers = self.head(x.float())
        return answers if answers.shape[1] == 1 else answers[:, :, None]
"""


@pytest.fixture
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.py").write_text(OWN)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("target", "said"),
    [("value", r"answers \[16, 1\] to targets \[16\], but must give \[16\]"),
     ("class", r"answers \[16, 4, 1\] to targets \[16\], but must give \[16, 4\]")],
)  # fmt: skip
def test_a_model_of_ones_own_with_another_shape_does_not_train(tmp_path: Path, target: str, said: str) -> None:
    ws = make_points(tmp_path / "ws", target=target, model={"name": "wide:Wide"})
    with pytest.raises(ParamsError, match=said):
        train(ws)
    model = build_model("wide:Wide", {}, ws.zone("shards").manifest().header["spec"])
    with pytest.raises(ParamsError, match=said.replace("16", "24")):
        evaluate(ws, model)


def evaluate(ws: Workspace, model: nn.Module) -> dict[str, Any]:
    zone = ws.zone("shards")
    config = ModelConfig({}, zone.manifest().header["spec"], None, "", "")
    return evaluate_model(model, config, zone, zone.manifest(), ws.params)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize("label", [-100, 4])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_wrong_label_in_the_shards_is_named_with_its_sample(tmp_path: Path, split: str, label: int) -> None:
    ws = make_points(tmp_path / "ws")
    zone = ws.zone("shards")
    manifest = zone.manifest()
    records = manifest.records()
    records = [record for record in records if record["split"] != split]
    labels = np.array([0, 1, label, 3])
    stored = zone.publish(encode_samples({"x": np.zeros((4, 4), np.float32), "label": labels}, list("stuv")), SUFFIX)
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": 4, "key": "k"}
    records.append(about | {"split": split, "tokens": 0, "stats": None})
    zone.commit(Manifest.build("shards", records, kind="samples", spec=manifest.header["spec"], counts={}, parents={}))
    holds = f"label holds {label}, but there are 4 classes"
    if split == "test":
        train(ws)
    else:
        with pytest.raises(DataError, match=f"sample u: {holds}"):
            train(ws)
    if split != "val":  # evaluate counts the train split's classes
        with pytest.raises(DataError, match=holds):
            evaluate(ws, nn.Linear(4, 4))


@pytest.mark.usefixtures("_own")
def test_a_spec_with_which_no_model_could_be_loaded_is_refused_before_training(tmp_path: Path) -> None:
    ws = make_text(tmp_path / "ws")
    zone = ws.zone("shards")
    spec = zone.manifest().header["spec"] | {"vocab_size": "257"}
    zone.commit(Manifest.build("shards", zone.manifest().records(), kind="tokens", spec=spec, counts={}, parents={}))
    with pytest.raises(DataError, match=r"The shards manifest \(version .*spec\.vocab_size: .*\(given: '257'\)"):
        aim(ws.params, zone.manifest())


def test_text_is_checked_as_well(tmp_path: Path) -> None:
    ws = make_text(tmp_path / "ws")
    zone = ws.zone("shards")
    spec = zone.manifest().header["spec"] | {"vocab_size": 120, "separator": None}
    records = zone.manifest().records()
    zone.commit(Manifest.build("shards", records, kind="tokens", spec=spec, counts={}, parents={}))
    with pytest.raises(ShardlineError, match=r"sample .*: tokens holds 256, but there are 120 tokens"):
        train(ws)


def test_a_task_made_by_hand_asks_for_the_same() -> None:
    with pytest.raises(ParamsError, match="the model answers with a tuple"):
        Task("regression").check_shapes((torch.zeros(2), torch.zeros(2)), torch.zeros(2))  # type: ignore[arg-type]
    both: tuple[Tensor, Tensor] = torch.zeros(2), torch.zeros(2)
    Task("regression").check_shapes(*both)
