"""Looking at one recipe of a project that has several: DVC shows all of them, these show one."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run, commit, write_params

pytestmark = pytest.mark.xdist_group("main-job")


@pytest.fixture
def two(copied: Path, run: Run) -> Path:
    """A project with a second recipe, whose figures are others."""
    other = copied / "recipes" / "other"
    other.mkdir(parents=True)
    write_params(other, {**TINY, "recipe": "other", "seed": 99})
    for name in ("dvc.yaml", "dvc.lock"):
        shutil.copy(copied / name, other)
    for name in ("metrics", "plots"):
        shutil.copytree(copied / name, other / name)
    (other / "metrics" / "evaluate.json").write_text('{"bits_per_byte": 1.25, "only_here": 1}')
    commit(copied, run, "a second recipe")
    return copied


def test_tables_are_of_one_recipe(run: Run, two: Path) -> None:
    other = two / "recipes" / "other"
    assert "only_here" in run("dvc", "metrics", "show", cwd=two).stdout, "DVC itself shows all"
    assert "only_here" not in run("shardline", "dvc", "metrics", "show", cwd=two).stdout
    shown = run("shardline", "dvc", "metrics", "show", "--json", cwd=other).stdout
    assert "only_here" in shown
    assert "baseline" not in shown
    write_params(other, {**TINY, "recipe": "other", "seed": 100})
    assert run("shardline", "dvc", "params", "diff", cwd=two).stdout.strip() == ""
    assert "seed" in run("shardline", "dvc", "params", "diff", cwd=other).stdout


def test_experiments_are_of_one_recipe(run: Run, two: Path) -> None:
    write_params(two, {**TINY, "train": {**TINY["train"], "lr": 0.5}})  # type: ignore[dict-item]
    shown = run("shardline", "experiments", cwd=two).stdout
    assert re.search(r"experiment +bits_per_byte +train.lr", shown)
    assert re.search(r"workspace +6\.\d+ +0.5", shown)
    assert "1.25" not in shown
    rows = json.loads(run("shardline", "experiments", "--json", cwd=two).stdout)
    assert rows[0]["experiment"] == "workspace"
    assert rows[0]["train.lr"] == "0.5"
    shown = run("shardline", "experiments", "--recipe", "other", cwd=two).stdout
    assert "train.lr" not in shown
    assert "1.25" in shown


def test_plots_are_one_page_that_needs_no_network(run: Run, two: Path) -> None:
    """Of this recipe, and of two revisions side by side."""
    done = run("shardline", "plots", "--recipe", "other", "--out", "drawn", cwd=two)
    page = (two / "drawn" / "index.html").read_text()
    assert str(two / "drawn" / "index.html") in done.stdout
    assert re.findall("<h2>(.*?)</h2>", page)[:2] == ["learning rate", "loss"]
    assert page.count("<svg") >= 2
    assert "<image" not in page
    loaded = re.findall(r"""(?:src|href)=['"](?!data:|#)([^'"]+)""", page)
    assert [address for address in loaded if "://" in address] == []
    assert "<script" not in page
    run("shardline", "plots", "HEAD", "workspace", cwd=two)
    page = (two / ".shardline" / "plots" / "index.html").read_text()
    assert "HEAD" in page
    assert "workspace" in page


def test_without_plots_it_says_what_to_run(run: Run, project: Path) -> None:
    done = run("shardline", "plots", cwd=project, code=1)
    assert "nothing has been plotted yet" in done.stderr
    assert "Traceback" not in done.stderr
