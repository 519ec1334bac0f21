"""The main job under DVC: what runs, what doesn't, and that it comes out the same however it was cut off."""

import json
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY, Run, commit, write_params
from support.servers import wait_for

from storage.manifest import Manifest

ZONES = ("raw", "curated", "shards")
pytestmark = pytest.mark.xdist_group("main-job")


def outcome(folder: Path) -> dict[str, object]:
    """All of a run that must repeat: dataset versions and metrics."""
    versions = {zone: Manifest.load(folder / "data" / zone).digest for zone in ZONES}
    metrics = {stage: json.loads((folder / "metrics" / f"{stage}.json").read_text()) for stage in ("train", "evaluate")}
    return {**versions, **metrics}


def ran(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The stages that a `shardline repro` ran."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def test_a_second_run_does_nothing_and_says_so(run: Run, finished: Path) -> None:
    done = run("shardline", "repro", cwd=finished)
    assert ran(done) == []
    assert "Data and pipelines are up to date" in done.stdout
    assert Manifest.load(finished / "data" / "shards").digest[:12] in done.stdout
    assert "bits_per_byte" in done.stdout
    assert "make ui" in done.stdout


def test_the_run_of_the_job_reads_well(finished: Path) -> None:
    """A name and a description; curves in groups; what never varies in tags, where it makes no chart of one bar."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished}/.shardline/mlflow/mlflow.db")
    run = client.get_run(json.loads((finished / "data" / "model" / "run.json").read_text())["run_id"])
    assert run.info.run_name == "tiny: first"
    bits = json.loads((finished / "metrics" / "evaluate.json").read_text())["bits_per_byte"]
    assert run.data.metrics["test/bits_per_byte"] == bits
    note = run.data.tags["mlflow.note.content"]
    assert f"**bits_per_byte {bits:.4f}** on the test split" in note
    assert "[tiny version 1](#/models/tiny/versions/1)" in note
    names = {name for name in run.data.metrics if not name.startswith("system/")}
    assert {name.split("/")[0] for name in names} <= {"train", "val", "test", "speed", "stream", "spent"}
    single = {name for name in names if len(client.get_metric_history(run.info.run_id, name)) == 1}
    assert {name for name in single if not name.startswith(("test/", "speed/", "stream/", "spent/"))} == set()
    assert run.data.tags["final.steps"] == "12"
    assert run.data.tags["test.baseline.bigram.bits_per_byte"]


def test_away_from_its_sources_it_goes_on_with_the_data_at_hand(run: Run, copied: Path) -> None:
    shutil.rmtree(copied / "texts")
    done = run("shardline", "repro", cwd=copied)
    assert "not asked for changes" in done.stdout
    assert "texts" in done.stdout
    assert "up to date" in done.stdout


def test_an_experiment_re_runs_training_and_what_follows(run: Run, copied: Path) -> None:
    """DVC's own commands, on a changed learning rate."""
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=copied).stdout)
    assert "bits_per_byte" in shown[""]["data"]["metrics/evaluate.json"]["data"]
    done = run("dvc", "exp", "run", "--set-param", "train.lr=0.001", cwd=copied)
    assert ran(done) == ["train", "evaluate", "package", "promote"]
    changed = run("dvc", "params", "diff", "--json", cwd=copied).stdout
    assert json.loads(changed)["params.yaml"]["train.lr"] == {"old": 0.003, "new": 0.001, "diff": -0.002}
    assert "bits_per_byte" in run("dvc", "metrics", "diff", cwd=copied).stdout
    run("dvc", "plots", "show", "--out", "drawn", cwd=copied)
    assert "vega" in (copied / "drawn" / "index.html").read_text()
    assert "promote: tiny is not registered: this is the experiment" in done.stdout
    again = run("shardline", "repro", cwd=copied)
    assert ran(again) == [], "params.yaml is not committed yet"
    assert "model    tiny is not registered (this is the experiment" in again.stdout
    commit(copied, run, "a better rate")
    kept = run("shardline", "repro", cwd=copied)
    assert ran(kept) == ["promote"]
    assert "model    tiny version 2 is " in kept.stdout
    assert ran(run("shardline", "repro", cwd=copied)) == []


@pytest.mark.long
def test_one_s_own_code_is_seen_when_it_changes(run: Run, copied: Path) -> None:
    """By plain DVC too, and by the stages that run it alone."""
    (copied / "own.py").write_text("from layers import Body\n\nclass Net(Body): ...\n")
    (copied / "layers.py").write_text("from pipelines.models.architectures.transformer import Transformer as Body\n")
    (copied / "measure.py").write_text("from torchmetrics.text import Perplexity\n")
    model = {**TINY["model"], "name": "own:Net"}  # type: ignore[dict-item]
    measure = {"name": "measure:Perplexity", "key": "own_perplexity"}
    write_params(copied, {**TINY, "model": model, "evaluate": {"metrics": [measure]}})
    refused = run("dvc", "repro", cwd=copied, code=255)
    assert "It does now: train depends on layers.py; train depends on own.py" in refused.stderr
    assert ran(run("dvc", "repro", cwd=copied)) == ["train", "evaluate", "package", "promote"]
    assert json.loads(run("dvc", "status", "--json", cwd=copied).stdout) == {}

    def stale_after(name: str) -> list[str]:
        (copied / name).write_text((copied / name).read_text() + "# changed\n")
        return list(json.loads(run("dvc", "status", "--json", cwd=copied).stdout))

    assert stale_after("measure.py") == ["evaluate"]
    assert stale_after("layers.py") == ["train", "evaluate", "package"]
    assert ran(run("shardline", "repro", cwd=copied)) == ["train", "evaluate", "package", "promote"]


def test_one_source_file_is_one_item(run: Run, copied: Path) -> None:
    (copied / "texts" / "doc005b.txt").write_text("one more\n" * 30)
    done = run("shardline", "repro", "--until", "shard", cwd=copied)
    assert "1 source files changed: doc005b.txt" in done.stdout
    for stage in ("ingest", "curate", "shard"):
        assert f"{stage}: 1 of" in done.stdout


def test_push_clone_pull_evaluate(run: Run, copied: Path, tmp_path: Path) -> None:
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), cwd=copied)
    run("git", "commit", "--quiet", "--all", "--message", "remote", cwd=copied)
    run("dvc", "push", cwd=copied)
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(copied), str(clone), cwd=tmp_path)
    run("dvc", "pull", cwd=clone)
    assert "up to date" in run("dvc", "status", cwd=clone).stdout
    before = (clone / "metrics" / "evaluate.json").read_bytes()
    (clone / "metrics" / "evaluate.json").unlink()
    run("shardline", "evaluate", cwd=clone)
    assert (clone / "metrics" / "evaluate.json").read_bytes() == before
    assert "up to date" in run("dvc", "status", cwd=clone).stdout


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def stage_process(process: "subprocess.Popen[str]", stage: str) -> psutil.Process | None:
    """The `shardline STAGE` below a running `shardline repro`."""
    for child in descendants(process) if process.poll() is None else []:
        try:
            if child.cmdline()[-1:] == [stage]:
                return child
        except psutil.Error:
            continue
    return None


def test_killed_in_each_stage_it_comes_out_the_same(
    run: Run, finished: Path, copied: Path, environment: dict[str, str]
) -> None:
    """SIGKILL in the midst of each stage in turn; the data stages have this test in tests/faults."""
    for out in ("data/model", "data/package", "metrics", "plots", "data/promotion.json"):
        path = copied / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(copied / ".dvc" / "cache")  # else DVC would find the outs of the first run there
    shutil.rmtree(copied / ".dvc" / "tmp")
    for stage in ("train", "evaluate", "package", "promote"):
        output = killed_in(stage, copied, environment)
        assert f"Running stage '{stage}'" in output
    run("shardline", "repro", cwd=copied)
    assert outcome(copied) == outcome(finished)


def killed_in(stage: str, folder: Path, environment: dict[str, str]) -> str:
    """Run the job, SIGKILL `stage` at work; returns what was printed."""
    process = subprocess.Popen(
        ["shardline", "repro"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: stage_process(process, stage) is not None, f"{stage} starts")
    victim = stage_process(process, stage)
    assert victim is not None
    wait_for(lambda: at_work(folder, victim, stage), f"{stage} is at work", every=0.002)  # checkpoints go at the end
    victim.kill()
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0, output
    return output


def at_work(folder: Path, process: psutil.Process, stage: str) -> bool:
    """Whether a stage is past its start: training has saved a checkpoint, others have computed for a second."""
    if stage == "train":
        return bool(list(folder.glob(".shardline/checkpoints/*/step-*")))
    return process.cpu_times().user > 1


def test_sigterm_to_repro_ends_all_and_the_same_command_goes_on(
    run: Run, copied: Path, environment: dict[str, str]
) -> None:
    longer = {**TINY, "train": {**TINY["train"], "steps": 100_000}}  # type: ignore[dict-item]
    write_params(copied, longer)
    process = subprocess.Popen(
        ["shardline", "repro"], cwd=copied, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: bool(list(copied.glob(".shardline/checkpoints/*/step-*"))), "a checkpoint")
    below = descendants(process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0, output
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    assert list(copied.glob(".shardline/checkpoints/*/step-*"))


def test_recipes_do_not_disturb_one_another(run: Run, copied: Path) -> None:
    other = {**TINY, "recipe": "other", "ingest": {"sources": ["../../texts/**/*.txt"]}}
    (copied / "recipes" / "other").mkdir(parents=True)
    write_params(copied / "recipes" / "other", other)
    first = run("shardline", "repro", "--recipe", "other", "--until", "shard", cwd=copied)
    assert [name.split(":")[-1] for name in ran(first)] == ["ingest", "curate", "shard"]
    assert ran(run("shardline", "repro", cwd=copied)) == []
    again = run("shardline", "repro", "--recipe", "other", "--until", "shard", cwd=copied)
    assert ran(again) == []
    assert (copied / "recipes" / "other" / "dvc.lock").is_file()
