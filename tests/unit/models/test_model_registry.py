"""From names and arguments to models, and what a person reads when that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.models import build_model, data_facts
from pipelines.models.importing import import_named
from pipelines.params.train.training import MODELS
from pipelines.training.trainer.entrypoint import find_script
from storage.errors import ParamsError

TOKENS = {"vocab_size": 257, "separator": 256}
PICTURES = {
    "inputs": {"x": {"dtype": "uint8", "shape": [8, 8, 3]}},
    "target": {"name": "label", "dtype": "int64"},
    "classes": ["a", "b", "c"],
    "mean": [100.0, 120.0, 140.0],
    "std": [50.0, 60.0, 70.0],
}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, *, num_classes, width=4, flags=None):\n"
        "        super().__init__()\n"
        "        if width < 1: raise ValueError('width must be positive')\n"
        "        self.head = nn.Linear(width, num_classes)\n"
        "class Needy(nn.Module):\n"
        "    def __init__(self, secret): super().__init__()\n"
        "class NoModel: pass\n"
        "def function(): pass\n"
    )
    (tmp_path / "my_models" / "broken.py").write_text("import no_such_library\n")
    return tmp_path


def test_the_registry_holds_what_the_documents_name() -> None:
    assert list(MODELS.members) == ["cnn", "mlp", "resnet", "transformer", "vit"]


def test_facts_of_the_data_are_injected_by_name() -> None:
    assert data_facts(TOKENS, 32) == {"vocab_size": 257, "seq_len": 32}
    facts = data_facts(PICTURES)
    assert (facts["input_shape"], facts["in_features"], facts["num_classes"]) == ((8, 8, 3), 192, 3)
    assert facts["mean"] == [100.0, 120.0, 140.0]


def test_an_import_path_gets_facts_and_arguments(own_module: Path) -> None:
    model = build_model("my_models.nets:Net", {"width": 6}, PICTURES)
    assert tuple(model.head.weight.shape) == (3, 6)
    assert str(own_module) not in sys.path


def test_an_argument_wins_over_a_fact(own_module: Path) -> None:
    assert build_model("my_models.nets:Net", {"num_classes": 9}, PICTURES).head.out_features == 9


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("transfromer", {}, "Did you mean 'transformer'?"),
        ("my_models.nest:Net", {}, "check the spelling"),
        ("my_models.broken:Net", {}, "no_such_library"),
        ("my_models.nets:Nett", {}, "Did you mean 'Net'?"),
        ("my_models.nets:NoModel", {}, "must be a class of torch.nn.Module"),
        ("my_models.nets:function", {}, "must be a class of torch.nn.Module"),
        ("my_models.nets:Net", {"widht": 3}, "model.args.widht: model 'my_models.nets:Net' takes no such argument"),
        ("my_models.nets:Net", {"widht": 3}, "Did you mean 'width'?"),
        ("my_models.nets:Net", {"width": 0}, "width must be positive"),
        ("my_models.nets:Needy", {}, "needs secret"),
        ("mlp", {"hiden": [3]}, "Did you mean 'hidden'?"),
        ("cnn", {"channels": "wide"}, "model.args.channels: Input should be a valid list (given: 'wide')"),
        ("transformer", {}, "is for text: it needs vocab_size, seq_len"),
    ],
)
def test_what_cannot_be_made_is_explained(name: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        build_model(name, args, PICTURES)
    assert said in str(caught.value)


EVIL = """
from pathlib import Path
Path(__file__).with_name("it_ran").touch()
from torch import nn
class Net(nn.Module):
    def __init__(self, **facts):
        super().__init__()
        self.head = nn.Linear(1, 1)
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Code among a recipe's raw data, in a package whose own code would run as well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("recipe: x")
    folder = tmp_path / "data" / "raw" / "pack"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "evil.py"):
        (folder / name).write_text(EVIL)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in ("data", "pack", "linked")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["data.raw.pack.evil:Net", "data.raw.pack:Net", "pack.evil:Net", "linked.pack:Net"])
def test_nothing_is_imported_from_below_data(evil: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (Path.cwd() / "linked").symlink_to(evil.parent)
    monkeypatch.syspath_prepend(evil.parent)
    with pytest.raises(ParamsError, match=r"model.name='.*' ?.*data.* which holds data and models"):
        build_model(name, {}, PICTURES)
    with pytest.raises(ParamsError, match=r"evaluate.metrics=.*Nothing is imported from there"):
        import_named(name, "evaluate.metrics")
    assert not (evil / "it_ran").exists()


def test_a_script_below_data_is_no_entry_point(evil: Path) -> None:
    with pytest.raises(ParamsError, match=r"train.entrypoint='data/raw/pack/evil.py'.*Nothing is imported from there"):
        find_script(Path.cwd(), "data/raw/pack/evil.py")


def test_a_package_named_data_that_is_no_recipes_is_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library" / "data").mkdir(parents=True)
    (tmp_path / "library" / "data" / "nets.py").write_text(EVIL)
    assert build_model("library.data.nets:Net", {}, PICTURES)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    def weight(seed: int) -> torch.Tensor:
        return build_model("transformer", {"dim": 16, "layers": 1, "heads": 2}, TOKENS, 8, seed=seed).embedding.weight

    torch.manual_seed(1)
    first = weight(5)
    state = torch.get_rng_state()
    assert torch.equal(weight(5), first)
    assert not torch.equal(weight(6), first)
    assert torch.equal(torch.get_rng_state(), state), "building a model must leave the process's generator alone"
