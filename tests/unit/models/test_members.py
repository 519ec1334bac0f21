"""Models and losses with typed parameters: ours, a new one in a file, and the user's own."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, TINY, write_params

from pipelines.models import build_model, task_of, with_loss
from pipelines.models.member import FACTS, Architecture, Loss
from pipelines.models.members import architectures, losses
from pipelines.params import Train, describe, load_params
from pipelines.params.schema.registry import Registry
from pipelines.params.train.training import LOSSES, MODELS
from storage.errors import ParamsError

NUMBERS = {"inputs": {"x": {"dtype": "float32", "shape": [3]}}, "target": {"name": "y", "dtype": "float32"}}

LINEAR = """
from typing import ClassVar
from pydantic import Field
from pipelines.models.member import Architecture

class Linear(Architecture):
    name: ClassVar[str] = "linear"
    width: int = Field(4, ge=1)
    \"\"\"Features in the middle.\"\"\"

    def module(self):
        from torch import nn

        class Module(nn.Module):
            def __init__(self, in_features, width):
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(in_features, width), nn.Linear(width, 1))

            def forward(self, x):
                return self.layers(x)[:, 0]

        return Module
"""

#: The example of the page.
(OWN,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "models.md").read_text(), re.DOTALL)

FOURTH = """
from typing import ClassVar
from pipelines.models.member import Loss

class Fourth(Loss):
    name: ClassVar[str] = "fourth"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    scale: float = 1.0
    \"\"\"Factor of the deviations.\"\"\"

    def criterion(self):
        return lambda answers, targets: ((self.scale * (answers - targets)) ** 4).sum()
"""


def add(text: str, family: Registry, package: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file more in the folder of a family, which has been looked through before."""
    assert family.members
    file = folder / f"added_to_{package.__name__.rpartition('.')[2]}.py"
    file.write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(family.__dict__, "members")


@pytest.mark.parametrize("name", MODELS.members)
def test_a_model_s_parameters_are_its_constructor_s_with_the_same_defaults(name: str) -> None:
    member: Any = MODELS.members[name]
    signature = inspect.signature(member().module()).parameters
    wanted = {key: one.default for key, one in signature.items() if key not in FACTS}
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in member().model_dump().items()}
    assert listed == wanted


def test_a_model_is_a_file_in_the_folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(LINEAR, MODELS, architectures, tmp_path, monkeypatch)
    rows = {row[0]: row for row in describe()}
    assert "linear" in rows["model.name"][1]
    assert rows["model.args.width (linear)"][1:] == ("int ≥ 1", "4", "Features in the middle.")
    write_params(tmp_path, {**TINY, "model": {"name": "linear", "args": {"width": "5"}}})
    with pytest.raises(ParamsError, match=r"model\.args\.width: .*valid integer \(given: '5'\)"):
        load_params(tmp_path / "params.yaml")
    assert build_model("linear", {"width": 5}, NUMBERS)(torch.zeros(2, 3)).shape == (2,)


def test_a_loss_is_a_file_in_the_folder_of_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(FOURTH, LOSSES, losses, tmp_path, monkeypatch)
    rows = {row[0]: row for row in describe()}
    assert "fourth" in rows["train.loss"][1]
    assert rows["train.loss_args.scale (fourth)"][1:] == ("float", "1.0", "Factor of the deviations.")
    with pytest.raises(ValueError, match=r"train\.loss_args\.scle: unknown parameter of Fourth. Did you mean 'scale'"):
        Train(steps=1, loss="fourth", loss_args={"scle": 2.0})
    task = with_loss(task_of(NUMBERS), Train(steps=1, loss="fourth", loss_args={"scale": 2.0}), NUMBERS)
    assert float(task.loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5]))) == 16 + 1


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current folder whose name no other test has imported."""
    monkeypatch.chdir(tmp_path)
    name = f"own_members_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN + FOURTH)
    return name


def test_a_model_of_ones_own_has_typed_parameters(own: str) -> None:
    assert build_model(f"{own}:Linear", {"width": 6}, NUMBERS).layers[0].out_features == 6
    assert build_model(f"{own}:Linear", {"in_features": 2}, NUMBERS).layers[0].in_features == 2, "a fact that is set"
    for args, message in (
        ({"width": "6"}, r"model\.args\.width: .*valid integer \(given: '6'\)"),
        ({"width": 0}, r"model\.args\.width: .*greater than or equal to 1"),
        ({"widht": 6}, r"model\.args\.widht: unknown parameter of Linear. Did you mean 'width'"),
        ({"vocab_size": 6}, r"model\.args\.vocab_size: model .* takes no such argument"),
    ):
        with pytest.raises(ParamsError, match=message):
            build_model(f"{own}:Linear", args, NUMBERS)


def test_a_loss_of_ones_own_has_typed_parameters(own: str) -> None:
    def task(**args: Any) -> Any:
        return with_loss(task_of(NUMBERS), Train(steps=1, loss=f"{own}:Fourth", loss_args=args), NUMBERS)

    assert float(task(scale=2.0).loss(torch.tensor([1.0]), torch.tensor([0.0]))) == 16
    with pytest.raises(ParamsError, match=r"train\.loss_args\.scale: .*valid number \(given: 'x'\)"):
        task(scale="x")
    classes = {"target": {"name": "y", "dtype": "int64"}, "classes": ["a", "b"]}
    with pytest.raises(ParamsError, match=r"train\.loss='.*:Fourth' is not for classification"):
        with_loss(task_of(classes), Train(steps=1, loss=f"{own}:Fourth"), classes)


def test_a_class_that_is_no_member_is_none(own: str) -> None:
    with pytest.raises(ParamsError, match=r"must be a class of torch\.nn\.Module, or of .*Architecture"):
        build_model(f"{own}:Fourth", {}, NUMBERS)
    assert not {Architecture, Loss} & {*MODELS.members.values(), *LOSSES.members.values()}
