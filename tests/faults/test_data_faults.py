"""Data stages killed, terminated and starved of disk, for real."""

import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY, Run, write_params, write_texts
from support import shared_memory

from storage.manifest import Manifest

STAGES = ("ingest", "curate", "shard")

#: Runs a stage in which the process gets a signal as the result of item `at` is noted.
HARNESS = """
import os, sys
from pipelines.ingest import stage
from pipelines import cli
name, at, signum = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
note, count = stage.Journal.__call__, 0
def noted(self, result):
    global count
    note(self, result)
    count += 1
    if count == at:
        os.kill(os.getpid(), signum)
stage.Journal.__call__ = noted
sys.argv = ["shardline", name]
cli.main()
"""


def _digest(folder: Path, zone: str) -> str:
    return Manifest.load(folder / "data" / zone).digest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_texts(folder / "texts")
    write_params(folder, TINY)
    for stage in STAGES:
        run("shardline", stage, cwd=folder)
    return folder


#: One signal of each kind in a short run.
CUT_OFF = [
    pytest.param(victim, signum, marks=() if signum in (signal.SIGKILL, once) else pytest.mark.long)
    for victim, once in zip(STAGES, (None, signal.SIGTERM, signal.SIGINT), strict=True)
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
]


@pytest.mark.parametrize(("victim", "signum"), CUT_OFF)
def test_a_stage_that_is_cut_off_goes_on(
    run: Run, recipe: Path, undisturbed: Path, victim: str, signum: signal.Signals
) -> None:
    for stage in STAGES[: STAGES.index(victim)]:
        run("shardline", stage, cwd=recipe)
    done = run("python", "-c", HARNESS, victim, "2", str(int(signum)), cwd=recipe, code=None)
    assert done.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), done.stderr
    assert "Traceback" not in done.stderr
    assert signum == signal.SIGKILL or "the same command goes on from there" in done.stderr
    zone = {"ingest": "raw", "curate": "curated", "shard": "shards"}[victim]
    assert not (recipe / "data" / zone / "manifest.arrow").exists()
    for stage in STAGES[STAGES.index(victim) :]:
        done = run("shardline", stage, cwd=recipe)
        if stage == victim:
            worked, items = done.stdout.split(": ")[1].split(" items")[0].split(" of ")
            assert int(worked) <= int(items) - 2  # two results had been noted
    for zone in ("raw", "curated", "shards"):
        assert _digest(recipe, zone) == _digest(undisturbed, zone)
        assert not list((recipe / "data" / zone).rglob("*.tmp"))


ALL_STAGES = (*STAGES, "train", "evaluate", "package", "promote")

#: A copy of the recipe on a file system of its own, in a mount namespace of its own, full to the last KiB.
FULL_DISK = """
mkdir disk && mount -t tmpfs -o size=64m tmpfs disk && cp -r "$0"/. disk && cd disk
dd if=/dev/zero of=filler bs=1k count=$(( $(df --output=avail -k . | tail -1) )) status=none
shardline "$1" && echo "not full" && exit 9
rm filler && exec shardline "$1" > again
"""


#: What each stage leaves in the folder of the recipe, besides the runs of MLflow's store.
OUTS = {
    "ingest": ["data/raw"],
    "curate": ["data/curated"],
    "shard": ["data/shards"],
    "train": ["data/model", "metrics/train.json", ".shardline/checkpoints"],
    "evaluate": ["metrics/evaluate.json"],
    "package": ["data/package"],
    "promote": ["data/promotion.json"],
}


def before(stage: str, finished: Path, folder: Path) -> Path:
    """The recipe as it is before `stage` runs, without git and DVC."""
    leave = shutil.ignore_patterns(".git", ".dvc", "dvc.*")
    shutil.copytree(finished, folder, ignore=leave, symlinks=True)
    for name in ALL_STAGES[ALL_STAGES.index(stage) :]:
        for out in OUTS[name]:
            path = folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=pytest.mark.long if s in ALL_STAGES[4:] else ()) for s in ALL_STAGES]
)
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, finished: Path, stage: str
) -> None:
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", FULL_DISK)
    recipe = before(stage, finished, tmp_path / "recipe")
    done = run(*namespace, str(recipe), stage, cwd=tmp_path)
    assert "no space left on the device" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "terminate called" not in done.stderr


def test_workers_end_with_a_killed_parent(run: Run, recipe: Path, environment: dict[str, str]) -> None:
    """SIGKILL of the stage leaves no worker process behind, and none of the semaphores that they shared."""
    code = (
        "import os, signal, psutil\n"
        "from pipelines.runtime.executors import PoolExecutor\n"
        "import operator\n"
        "results = PoolExecutor(2, processes=True).map(operator.neg, range(50))\n"
        "next(results)\n"
        "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (recipe / "main.py").write_text(f"if __name__ == '__main__':\n    exec({code!r})\n")
    with shared_memory.none_is_left():
        done = subprocess.run(["python", "main.py"], cwd=recipe, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL
        workers = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_source_that_goes_while_it_is_read_is_named(run: Run, recipe: Path) -> None:
    code = HARNESS.replace(
        "os.kill(os.getpid(), signum)", "[p.unlink() for p in list(__import__('pathlib').Path('texts').iterdir())]"
    )
    write_params(recipe, {**TINY, "compute": {"engine": "threads", "workers": 1}})
    done = run("python", "-c", code, "ingest", "1", "0", cwd=recipe, code=1)
    assert "cannot be read" in done.stderr
    assert "ingest.exclude" in done.stderr
    assert not (recipe / "data" / "raw" / "manifest.arrow").exists()
