"""The command line as a person meets it: help, wrong input, nothing half-written."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Run, write_params

from storage.manifest import Manifest


def test_help_imports_nothing_heavy(run: Run, tmp_path: Path) -> None:
    code = "import sys, pipelines.cli; print([m for m in sys.modules if m.split('.')[0] in HEAVY])"
    heavy = "HEAVY = 'torch mlflow pyarrow numpy pydantic dvc prefect matplotlib sklearn fsspec'.split()\n"
    assert run("python", "-c", heavy + code, cwd=tmp_path).stdout.strip() == "[]"
    text = run("shardline", "--help", cwd=tmp_path).stdout
    for command in ("repro", "ingest", "curate", "shard", "train", "evaluate", "package", "promote", "generate"):
        assert command in text


@pytest.mark.parametrize(
    ("sections", "code", "message"),
    [
        ({"ingest": {"sources": ["texts/*.csv"]}}, 1, "matches no file"),
        ({"ingest": {"sources": ["nowhere/**"]}}, 1, "does not exist"),
        ({"ingest": {"surces": ["x"]}}, 2, "Did you mean 'sources'"),
        ({"seed": "one"}, 2, "seed: Input should be a valid integer (given: 'one')"),
    ],
)
def test_wrong_input_gives_a_message_and_writes_nothing(
    run: Run, recipe: Path, sections: dict[str, object], code: int, message: str
) -> None:
    write_params(recipe, {**TINY, **sections})
    done = run("shardline", "ingest", cwd=recipe, code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (recipe / "data").exists()


def test_the_first_error_a_person_can_make(run: Run, tmp_path: Path) -> None:
    done = run("shardline", "ingest", cwd=tmp_path, code=2)
    assert "no such file" in done.stderr
    assert "--recipe" in done.stderr
    done = run("shardline", "repro", "--recipe", "digit", cwd=tmp_path, code=2)
    assert "no DVC project" in done.stderr


def test_stages_out_of_order_say_what_to_run(run: Run, recipe: Path) -> None:
    for stage in ("curate", "shard", "train"):
        done = run("shardline", stage, cwd=recipe, code=1)
        assert "dvc repro" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_stage_run_alone_says_that_its_input_was_made_of_other_parents(run: Run, recipe: Path) -> None:
    def digests() -> list[str]:
        return [Manifest.load(recipe / "data" / zone).digest[:12] for zone in ("raw", "curated", "shards")]

    for stage in ("ingest", "curate", "shard"):
        assert "was made of" not in run("shardline", stage, cwd=recipe).stdout
    raw, curated, shards = digests()
    (recipe / "texts" / "new.txt").write_text("a new file\n" * 9)
    run("shardline", "ingest", cwd=recipe)
    told = f"{curated} was made of raw {raw}, but there is raw {digests()[0]} now. To make it anew: `dvc repro curate`."
    assert f"curated {told}" in run("shardline", "shard", cwd=recipe).stdout
    assert digests()[2] == shards
    said = run("shardline", "verify", cwd=recipe).stdout
    assert f"curated {told}" in said
    assert f"shards {shards} was made of raw {raw}" in said
    run("shardline", "curate", cwd=recipe)
    lines = run("shardline", "train", cwd=recipe).stdout.splitlines()
    now = f"curated {digests()[1]} and raw {digests()[0]}"
    assert (
        f"shards {shards} was made of curated {curated} and raw {raw}, but there is {now} now. To make it anew: "
        "`dvc repro shard`."
    ) in lines
    (recipe / "data" / "raw" / "manifest.arrow").unlink()  # pulled without it
    assert "was made of" not in run("shardline", "shard", cwd=recipe).stdout
    assert "was made of" not in run("shardline", "verify", cwd=recipe).stdout


def test_looking_at_zones_and_verifying_them(run: Run, recipe: Path) -> None:
    for stage in ("ingest", "curate", "shard"):
        done = run("shardline", stage, cwd=recipe)
        assert "version" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr  # no bars, no colours where there is no terminal
    shown = run("shardline", "show", "shards", cwd=recipe).stdout
    assert "version" in shown
    assert "train" in shown
    assert "0 not" in run("shardline", "verify", cwd=recipe).stdout
    victim = next((recipe / "data" / "curated" / "objects").iterdir())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = run("shardline", "verify", cwd=recipe, code=1)
    assert victim.name in done.stderr
    assert "digest mismatch" in done.stderr
    for raw in (recipe / "data" / "raw" / "objects").iterdir():
        raw.unlink()
    done = run("shardline", "verify", "raw", cwd=recipe, code=1)
    assert "raw: 0 objects as the manifest says, 24 not" in done.stdout
    assert victim.name not in done.stderr
    assert len(done.stderr.splitlines()) == 11
    assert "… and 14 more" in done.stderr


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_recipe_where_a_zone_is_expected_is_told_how_it_is_given(run: Run, project: Path, command: str) -> None:
    told = " ".join(run("shardline", command, "python_lm", cwd=project, code=2).stderr.replace("│", " ").split())
    assert "'python_lm' is no zone: raw, curated, shards. A recipe is given by --recipe: --recipe python_lm" in told


def test_a_damaged_input_stops_the_next_stage(run: Run, recipe: Path) -> None:
    run("shardline", "ingest", cwd=recipe)
    victim = next((recipe / "data" / "raw" / "objects").iterdir())
    victim.write_bytes(victim.read_bytes().replace(b"def", b"deg", 1))
    done = run("shardline", "curate", cwd=recipe, code=1)
    assert "digest mismatch" in done.stderr
    assert not (recipe / "data" / "curated" / "manifest.arrow").exists()


def test_params_and_recipes_are_listed(run: Run, project: Path) -> None:
    assert "Peak learning rate" in run("shardline", "params", "train.lr", cwd=project).stdout
    assert "Did you mean" in run("shardline", "params", "train.lrr", cwd=project, code=2).stderr
    assert "texts/**/*.txt" in run("shardline", "recipes", cwd=project).stdout
    (project / "data" / "shards").mkdir(parents=True)
    (project / "data" / "shards" / "manifest.arrow").write_bytes(b"damaged")
    assert "not a Shardline manifest" in run("shardline", "recipes", cwd=project).stdout


def test_version_and_completion(run: Run, project: Path, environment: dict[str, str]) -> None:
    assert run("shardline", "--version", cwd=project).stdout == f"shardline {version('shardline')}\n"
    (project / "recipes" / "digits").mkdir(parents=True)
    shutil.copy(project / "params.yaml", project / "recipes" / "digits")
    for words in ("shardline repro ", "shardline repro --recipe ", "shardline predict --recipe "):
        asked = {"_SHARDLINE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
        completed = run("shardline", cwd=project, env=asked, code=None).stdout.split()
        assert completed == ["python_lm", "digits"], words


def test_a_recipe_is_named_in_either_way(run: Run, project: Path) -> None:
    folder = project / "recipes" / "other"
    folder.mkdir(parents=True)
    write_params(folder, {**TINY, "recipe": "other", "ingest": {"sources": ["../../texts/*.txt"]}})
    for words in (["other"], ["--recipe", "other"], ["other", "-r", "other"]):
        run("shardline", "repro", *words, "--until", "ingest", cwd=project)
    assert (folder / "data" / "raw" / "manifest.arrow").is_file()
    assert json.loads(run("shardline", "show", "raw", "other", "--json", cwd=project).stdout)["objects"] == 24
    done = run("shardline", "ingest", "other", "--recipe", "tiny", cwd=project, code=2)
    assert "Two recipes: 'other' and --recipe 'tiny'" in done.stderr


def test_what_prints_a_table_prints_json_too(run: Run, project: Path) -> None:
    for stage in ("ingest", "curate", "shard"):
        run("shardline", stage, cwd=project)

    def asked(*words: str, code: int = 0) -> Any:
        return json.loads(run("shardline", *words, "--json", cwd=project, code=code).stdout)

    (recipe,) = asked("recipes")
    assert (recipe["recipe"], recipe["model"], recipe["promoted"]) == ("python_lm", "transformer", False)
    shown = asked("show")
    assert shown["version"] == recipe["data"] == Manifest.load(project / "data" / "shards").digest
    assert shown["rows"]["train"] > shown["rows"]["val"] > 0
    assert "learning rate" in {row["parameter"]: row["meaning"] for row in asked("params", "train.lr")}["train.lr"]
    assert [one["zone"] for one in asked("verify")] == ["raw", "curated", "shards"]
    victim = next((project / "data" / "raw" / "objects").iterdir())
    victim.unlink()
    (raw,) = asked("verify", "raw", code=1)
    assert (raw["objects"], len(raw["damaged"])) == (24, 1)
    tiers = asked("cache", "show")
    assert {name: tier["state"] for name, tier in tiers.items()} == {"node": "off", "hot": "off"}
    trials = asked("find", "batch", "--most", "2")
    assert [trial["size"] for trial in trials] == [1, 2]
    entries = asked("compare", "optimizers", "--only", "sgd,adamw", "--steps", "2")
    assert {entry["name"] for entry in entries} == {"sgd", "adamw"}
    assert all(entry["val_loss"] > 0 for entry in entries)
    measured = asked("profile", "--steps", "2", "--warm-up", "2")
    assert measured["bound"] in measured["figures"]["shares"]
    assert measured["figures"]["step_seconds"] > 0
    again = asked("replay", "--step", "1")
    assert (again["step"], again["weights_of"], len(again["samples"])) == (1, 0, 8)


@pytest.mark.long
def test_a_comparison_over_ranks_prints_json_too(run: Run, project: Path) -> None:
    for stage in ("ingest", "curate", "shard"):
        run("shardline", stage, cwd=project)
    asked = ("compare", "communication", "--only", "all-reduce,powersgd", "--steps", "2", "--json")
    entries = json.loads(run("shardline", *asked, cwd=project).stdout)
    assert {entry["name"] for entry in entries} == {"all-reduce", "powersgd"}
    assert all(entry["sent_mb"] > 0 for entry in entries)


def test_a_fault_of_our_own_is_told_without_passwords(run: Run, project: Path) -> None:
    code = (
        "import sys; from pipelines import cli; from pipelines.reproduce import inspect\n"
        "def broken(): raise RuntimeError('GET https://S3cret@host/x?sig=S3cret gave 500')\n"
        "inspect.show_recipes = broken; sys.argv = ['shardline', 'recipes']; cli.main()"
    )
    done = run("python", "-c", code, cwd=project, code=1)
    assert "Traceback" in done.stderr
    assert "RuntimeError: GET https://***@host/x?sig=*** gave 500" in done.stderr
    assert "S3cret" not in done.stderr
