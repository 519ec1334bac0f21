"""Parameters: every wrong one is named with what it may be; every recipe that ships is right."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, Run, write_params

from pipelines.params import Params, describe, load_params
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
        ({"train": {"steps": 3, "network": {}}}, r"train.network: is called train.communication now. Rename it"),
        ({"stream": {"documents": True}}, r"stream.documents: is called stream.document_mask now"),
        ({"stream": {"samples": "windows"}}, r"stream.samples: Input should be 'sequences' or 'documents'"),
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
        ({"model": {"name": "transfomer"}}, r"model.name: no such name. Did you mean 'transformer'\?.*Class \("),
        ({"train": {"steps": 3, "loss": "mse"}}, r"train.loss: no such name. Known here: auto, .*huber"),
        (
            {"model": {"name": "transformer", "args": {"dim": "64"}}},
            r"  model\.args\.dim: .*valid integer \(given: '64'",
        ),
        ({"model": {"name": "transformer", "args": {"layer": 1}}}, r"  model\.args\.layer: .*Did you mean 'layers'"),
        ({"model": {"args": {"hiden": [1]}}}, r"  model\.args\.hiden: unknown parameter of Mlp. Did you mean 'hidden'"),
        (
            {"model": {"name": "resnet", "args": {"widths": [8]}}},
            r"model\.args: widths=\[8\] and depths=.* be as many\. ",
        ),
        ({"model": {"name": "vit", "args": {"dim": 30}}}, r"model\.args: dim=30 must be a multiple"),
        ({"train": {"steps": 3, "loss": "focal", "loss_args": {"gama": 1.0}}}, r"  train\.loss_args\.gama: .*'gamma'"),
        (
            {"train": {"steps": 3, "loss": "huber", "loss_args": {"delta": 0}}},
            r"train\.loss_args\.delta: .*greater than 0",
        ),
        ({"train": {"steps": 3, "loss_args": {"delta": 1.0}}}, r"train\.loss_args: train\.loss=auto takes none"),
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


def test_a_model_s_parameters_stay_what_the_user_wrote(tmp_path: Path) -> None:
    model = {"name": "transformer", "args": {"dropout": 0, "dim": 8, "seq_len": 4}}
    assert loaded(tmp_path, model=model).model.model_dump_json() == json.dumps(model, separators=(",", ":"))


def test_parameters_of_models_and_losses_are_checked_and_listed_without_torch(tmp_path: Path, run: Run) -> None:
    write_params(tmp_path, {**TINY, "model": {"name": "transformer", "args": {"dim": "64"}}})
    code = (
        "import sys\nfrom pipelines.params import describe, load_params\nfrom storage.errors import ParamsError\n"
        "names = [row[0] for row in describe()]\n"
        "assert {'model.args.dim (vit)', 'train.loss_args.gamma (focal)'} <= {*names}\n"
        "try: load_params()\n"
        "except ParamsError as error: assert 'model.args.dim' in str(error)\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'mlflow') if name in sys.modules])"
    )
    assert run("python", "-c", code, cwd=tmp_path).stdout.strip() == "[]"


@pytest.mark.parametrize("url", ["s3://bucket/x", "file:///a", "memory://x", "s3-data/x", "data//x", "./s3//x", "/s3"])
def test_urls_and_folders_are_taken(tmp_path: Path, url: str) -> None:
    assert loaded(tmp_path, lake={"url": url}).lake.url == url


def test_every_parameter_says_what_it_is() -> None:
    assert [name for name, _, _, meaning in describe() if not meaning] == []


def test_what_an_entry_of_a_list_may_say_is_listed() -> None:
    rows = {row[0]: row for row in describe()}
    assert rows["evaluate.metrics"][1] == "list[str | Metric]"
    assert rows["evaluate.metrics.args (each)"][1:3] == ("dict[str, Any]", "{}")
