"""The files of one's own that a stage runs, found by reading, and listed in dvc.yaml."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, write_params

from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.runtime.own_code import changed_since, code_behind, code_of, digests
from pipelines.workspace import Aside, Workspace
from storage.digest import digest_bytes


def opened(folder: Path, **sections: object) -> Workspace:
    write_params(folder, {**TINY, **sections})
    return Workspace.open(folder)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a project, with a copy of Shardline's dvc.yaml."""
    (tmp_path / ".dvc").mkdir()
    folder = tmp_path / "recipes" / "own"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", folder)
    return folder


def deps(folder: Path) -> dict[str, list[str]]:
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    return {name: [dep for dep in stage.get("deps", []) if dep.endswith(".py")] for name, stage in stages.items()}


def test_imports_are_followed_and_nothing_is_run(recipe: Path) -> None:
    (recipe / "net").mkdir()
    (recipe / "net" / "__init__.py").write_text("raise SystemError('it was run')")
    (recipe / "net" / "model.py").write_text(
        "import numpy, torch.nn\nfrom . import layers\nfrom pipelines.models.architectures.mlp import MLP\n"
    )
    (recipe / "net" / "layers.py").write_text("def late():\n    from shared import norm\n    import metric\n")
    (recipe / "net" / "unused.py").write_text("")
    (recipe / "shared.py").write_text("import broken")
    (recipe / "broken.py").write_text("def (")
    (recipe / "metric.py").write_text("import net.model")
    ws = opened(
        recipe, model={"name": "net.model:Net"}, evaluate={"metrics": ["MulticlassAUROC", {"name": "shared:F"}]}
    )
    model = ["broken.py", "metric.py", "net/__init__.py", "net/layers.py", "net/model.py", "shared.py"]
    assert code_of(ws) == {"train": model, "evaluate": model, "package": model}


@pytest.mark.parametrize("where", ["missing", "link"])
def test_a_trial_in_another_folder_has_the_same_code(where: str, recipe: Path, tmp_path: Path) -> None:
    """Which need not be there yet, or is a link, so that its `..` is another folder."""
    (tmp_path / "shared.py").write_text("x = 1")
    ws = opened(recipe, model={"name": "shared:Net"})
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    aside = Aside(tmp_path / where, ws.project, ws.params, ws)
    assert code_behind("shared:Net", aside) == {"../shared.py": digest_bytes(b"x = 1")}
    assert digests(aside, "train") == digests(ws, "train") != []


def test_each_setting_s_code_is_listed_where_it_is_run(recipe: Path) -> None:
    for name in ("model", "loss", "trainer", "metric"):
        (recipe / f"{name}.py").write_text("")
    train = {**TINY["train"], "loss": "loss:f", "entrypoint": "trainer.py"}  # type: ignore[dict-item]
    ws = opened(recipe, model={"name": "model:M"}, train=train, evaluate={"metrics": ["metric:M"]})
    before = (recipe / "dvc.yaml").read_text()
    assert "train depends on trainer.py" in depend_on_code(ws)
    listed = {
        "train": ["loss.py", "model.py", "trainer.py"],
        "evaluate": ["metric.py", "model.py"],
        "package": ["model.py"],
    }
    assert {name: found for name, found in deps(recipe).items() if found} == listed
    after = (recipe / "dvc.yaml").read_text()
    changed = set(after.splitlines()) - set(before.splitlines())
    assert len(changed) == 3, "all else stays as it was, comments too"
    assert depend_on_code(ws) == []
    assert (recipe / "dvc.yaml").read_text() == after


def test_what_a_person_lists_stays_and_what_is_gone_goes(recipe: Path) -> None:
    for name in ("model", "helper", "by_hand"):
        (recipe / f"{name}.py").write_text("")
    (recipe / "model.py").write_text("import helper")
    text = (
        (recipe / "dvc.yaml")
        .read_text()
        .replace("deps: [data/shards]\n", "deps: [data/shards, by_hand.py, ../../x.csv]\n")
    )
    (recipe / "dvc.yaml").write_text(text)
    ws = opened(recipe, model={"name": "model:M"})
    depend_on_code(ws)
    (recipe / "model.py").write_text("")
    (recipe / "helper.py").unlink()
    assert len(depend_on_code(ws)) == 3
    assert deps(recipe)["train"] == ["by_hand.py", "model.py"]
    assert "../../x.csv" in (recipe / "dvc.yaml").read_text()


def test_what_is_gone_stays_listed_where_a_stage_makes_it_or_a_person_wrote_the_stage(recipe: Path) -> None:
    """It comes back before it is needed, or DVC says what is missing; a stage of ours that runs no own code any more
    is rid of it."""
    pipeline = yaml.safe_load((recipe / "dvc.yaml").read_text())
    pipeline["stages"]["train"]["deps"] += ["data/curated/made.py", "model.py"]
    pipeline["stages"]["report"] = {"cmd": "python report.py", "deps": ["report.py"], "outs": ["report.txt"]}
    (recipe / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    assert depend_on_code(opened(recipe)) == ["train depends on model.py no more, which is gone"]
    assert {name: found for name, found in deps(recipe).items() if found} == {
        "train": ["data/curated/made.py"],
        "report": ["report.py"],
    }


def test_recipes_without_own_code_keep_their_file(recipe: Path) -> None:
    before = (recipe / "dvc.yaml").read_bytes()
    assert depend_on_code(opened(recipe)) == []
    assert (recipe / "dvc.yaml").read_bytes() == before
    assert code_of(opened(recipe, model={"name": "torch.nn:Linear"}))["train"] == []


def test_modules_of_the_project_are_own_code_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = recipe.parents[1] / "shared"
    shared.mkdir()
    (shared / "blocks.py").write_text("")
    (recipe / "model.py").write_text("from blocks import Block")
    monkeypatch.setattr(sys, "path", [str(shared), *sys.path])
    ws = opened(recipe, model={"name": "model:M"})
    assert code_of(ws)["train"] == ["../../shared/blocks.py", "model.py"]


def test_code_in_an_out_is_not_listed_since_dvc_would_read_no_recipe_any_more(recipe: Path) -> None:
    for name in ("data/model/late.py", "plots/shapes.py"):
        (recipe / name).parent.mkdir(parents=True, exist_ok=True)
        (recipe / name).write_text("")
    (recipe / "plots" / "evaluate").mkdir()
    (recipe / "plots" / "evaluate" / "curves.py").write_text("")
    (recipe / "model.py").write_text("import data.model.late\nimport plots.shapes\nimport plots.evaluate.curves\n")
    depend_on_code(opened(recipe, model={"name": "model:M"}))
    assert deps(recipe)["train"] == ["model.py", "plots/shapes.py"]
    assert deps(recipe)["evaluate"] == deps(recipe)["train"]


def test_a_model_s_code_is_the_same_with_and_without_the_path_of_its_training(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading looks in the project, too: what PYTHONPATH gave a training is not gone for those that come without."""
    project = recipe.parents[1]
    (project / "shared_blocks.py").write_text("")
    (recipe / "model.py").write_text("import shared_blocks")
    ws = opened(recipe, model={"name": "model:M"})
    with monkeypatch.context() as training:
        training.setattr(sys, "path", [str(project), *sys.path])
        trained = code_behind("model:M", ws)
    assert sorted(trained) == ["../../shared_blocks.py", "model.py"]
    assert changed_since(ws, "model:M", trained) == []
    (project / "shared_blocks.py").unlink()
    (recipe / "model.py").write_text("import other")
    (recipe / "other.py").write_text("")
    words = ["../../shared_blocks.py (gone)", "model.py (changed)", "other.py (new)"]
    assert changed_since(ws, "model:M", trained) == words
    assert code_behind("mlp", ws) == {}
