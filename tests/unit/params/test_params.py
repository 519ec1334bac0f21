"""Parameters: every wrong one is named with what it may be; every recipe that ships is right."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, write_params

from pipelines.models import losses, registry
from pipelines.params import Params, describe, load_params
from pipelines.params.schema import names
from storage.errors import ParamsError


def loaded(folder: Path, **sections: object) -> Params:
    write_params(folder, {**TINY, **sections})
    return load_params(folder / "params.yaml")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"steps": 3, "learning_rate": 1.0}}, r"train.learning_rate: unknown parameter"),
        ({"train": {"steps": 3, "warmpu": 0.1}}, r"train.warmpu: unknown parameter. Did you mean 'warmup'\?"),
        ({"trian": {}}, r"trian: unknown parameter. Did you mean 'train'\?"),
        ({"train": {"steps": "many"}}, r"train.steps: .*valid integer \(given: 'many'\)"),
        ({"train": {"steps": 3, "lr": -1.0}}, r"train.lr: .*greater than 0 \(given: -1.0\). Peak learning rate"),
        ({"train": {"steps": 3, "epochs": 1.0}}, r"exactly one of train.steps and train.epochs"),
        ({"train": {"steps": 3, "betas": [0.9, 1.5]}}, r"each must be in \[0, 1\)"),
        ({"train": {"steps": 3, "device": "gpu"}}, r"train.device"),
        ({"curate": {"split": {"train": 0.9, "val": 0.2, "test": 0.1}}}, r"= 1.2, but must be 1"),
        ({"ingest": {"sources": []}}, r"ingest.sources: .*at least 1 item"),
        ({"ingest": {}}, r"ingest.sources: missing. It has no default. Where the raw data"),
        ({"recipe": "a/b"}, r"recipe: .*pattern"),
        ({"promote": {"gate": {"metric": "accuracy", "mode": "largest"}}}, r"promote.gate.mode: .*'min' or 'max'"),
        ({"lake": {"zones": {"shard": "s3://x"}}}, r"lake.zones.shard"),
        ({"lake": {"url": "s3//bucket/x"}}, r"lake: s3//bucket/x would be a folder .* begins with s3://"),
        ({"lake": {"zones": {"raw": "gs:/bucket"}}}, r"lake: gs:/bucket would be a folder"),
        ({"model": {"name": "transfomer"}}, r"model.name: no such model. Did you mean 'transformer'\?.*Class \("),
        ({"train": {"steps": 3, "loss": "mse"}}, r"train.loss: no such loss. Known here: auto, .*huber"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, sections: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        loaded(tmp_path, **sections)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TINY).replace("lr: 0.003", "lr: 3e-3"))
    assert load_params(tmp_path / "params.yaml").train.lr == 0.003


def test_files_that_are_no_parameters(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match="no such file"):
        load_params(file)
    file.write_text("- a\n")
    with pytest.raises(ParamsError, match="expected sections"):
        load_params(file)
    file.write_text("a: [\n")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(file)


@pytest.mark.parametrize("file", [REPOSITORY / "params.yaml", *sorted(REPOSITORY.glob("recipes/*/params.yaml"))])
def test_the_recipes_that_ship_are_valid(file: Path) -> None:
    params = load_params(file)
    assert params.recipe == (file.parent.name if file.parent != REPOSITORY else "python_lm")


def test_names_that_parameters_take_are_those_that_there_are() -> None:
    assert set(names.MODELS) == set(registry.MODELS)
    assert set(names.LOSSES) == {losses.AUTO, *losses.CLASSES, *losses.NUMBERS}


@pytest.mark.parametrize("url", ["s3://bucket/x", "file:///a", "memory://x", "s3-data/x", "data//x", "./s3//x", "/s3"])
def test_urls_and_folders_are_taken(tmp_path: Path, url: str) -> None:
    assert loaded(tmp_path, lake={"url": url}).lake.url == url


def test_every_parameter_says_what_it_is() -> None:
    assert [name for name, _, _, meaning in describe() if not meaning] == []
