"""The command line as a person meets it: help, wrong input, nothing half-written."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import TINY, Run, write_params
from servers import answers, free_port, wait_for


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


def test_the_ui_serves_the_project_s_runs(project: Path, environment: dict[str, str]) -> None:
    port = free_port()
    with (project / "ui.log").open("wb") as log:
        command = ["shardline", "ui", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/", 200), f"the UI, see {project}/ui.log")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (project / ".shardline" / "mlflow" / "mlflow.db").is_file()
