"""Two who want to write in one recipe's folder, and writers that are killed: nothing is lost, no process is left."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import TINY, Run, write_params
from support.servers import wait_for

from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.workspace import Workspace

pytestmark = [pytest.mark.xdist_group("writers"), pytest.mark.long]

#: A model whose steps wait for a file, so that a test says how long training takes.
GATED = """
import time
from pathlib import Path
from pipelines.models.architectures.transformer import Transformer

class Gated(Transformer):
    def forward(self, *inputs):
        while not Path("open").exists():
            time.sleep(0.02)
        return super().forward(*inputs)
"""
#: A job that has no stage at work, until it finds a file.
BETWEEN = """
import time
from pathlib import Path
from pipelines.reproduce.writer import exclusive
from pipelines.workspace import Workspace

with exclusive(Workspace.open()):
    print("in", flush=True)
    while not Path("open").exists():
        time.sleep(0.02)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start a command in a folder; what is left of it at the end is killed."""
    with ExitStack() as stack:

        def call(*command: str, cwd: Path) -> "subprocess.Popen[str]":
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(end, process, cwd)
            return process

        yield call


def end(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Kill it, what is below it, and a training that outlived what started it, which would hold its pipe open."""
    for left in (*below(process), process, *stages(folder)):
        left.kill()
    process.communicate()


def below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []


@pytest.fixture
def gated(copied: Path, run: Run) -> Path:
    """A project that has run, whose training is stale and waits for the file `open`."""
    (copied / "gated.py").write_text(GATED)
    write_params(copied, {**TINY, "model": {**TINY["model"], "name": "gated:Gated"}})  # type: ignore[dict-item]
    depend_on_code(Workspace.open(copied))
    run("git", "add", "--all", cwd=copied)
    run("git", "commit", "--quiet", "--message", "gated", cwd=copied)
    return copied


def stages(folder: Path, name: str = "train") -> list[psutil.Process]:
    """The processes `shardline STAGE` that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = len(words) == 3 and Path(words[1]).name == "shardline" and words[2] == name
            if ours and process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def training(folder: Path) -> bool:
    """Whether a training waits at the gate."""
    return bool(stages(folder)) and stages(folder)[0].cpu_times().user > 1


def said(process: "subprocess.Popen[str]", word: str) -> list[str]:
    """What a process prints, up to a line with `word`."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"{word!r} was not said:\n{''.join(lines)}")


@pytest.mark.parametrize("command", [("shardline", "repro"), ("dvc", "repro")])
def test_a_stage_ends_when_what_started_it_is_killed(start: Start, copied: Path, command: tuple[str, ...]) -> None:
    """SIGKILL, which nobody can pass on. It saves; the next run starts no second stage beside it, and goes on."""
    write_params(copied, {**TINY, "train": {**TINY["train"], "steps": 100_000}})  # type: ignore[dict-item]
    first = start(*command, cwd=copied)
    wait_for(lambda: bool(list(copied.glob(".shardline/checkpoints/*/step-*"))), "a checkpoint", 120)
    [stage] = stages(copied)
    processes = below(first)
    first.kill()  # and nobody reaps it, as in a container without an init
    second = start("shardline", "repro", cwd=copied)
    wait_for(lambda: bool(set(stages(copied)) - {stage}), "the next training starts", 120)
    assert not any(map(runs, [stage, *processes]))
    said(second, "going on from step")


def test_a_job_waits_for_dvc_and_dvc_for_nobody_s_ruin(start: Start, run: Run, gated: Path) -> None:
    """`dvc exp run` is first: a job says so, waits to its end, and finds all up to date."""
    experiment = start("dvc", "exp", "run", "--set-param", "train.lr=0.002", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    job = start("shardline", "repro", cwd=gated)
    assert f"(process {experiment.pid}" in "".join(said(job, "waiting for it"))
    (gated / "open").touch()
    output = experiment.communicate(timeout=120)[0]
    assert experiment.returncode == 0, output
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output
    assert "Running stage" not in output
    assert run("dvc", "params", "diff", "--json", cwd=gated).stdout.count("0.002") == 1


@pytest.mark.parametrize("command", [["repro"], ["exp", "run"]])
def test_a_job_waits_for_dvc_at_a_stage_of_somebody_s_own(start: Start, gated: Path, command: list[str]) -> None:
    """Which knows no locks of ours. Nothing else is run beside it, either: the parameters may be an experiment's."""
    pipeline = yaml.safe_load((gated / "dvc.yaml").read_text())
    waits = "touch begun; until [ -e go ]; do sleep 0.05; done; touch last.txt"
    pipeline["stages"]["last"] = {"cmd": waits, "deps": ["data/package"], "outs": ["last.txt"]}
    (gated / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (gated / "open").touch()  # training, at which nothing is to be begun yet, would not wait
    first = start("dvc", *command, "--single-item", "last", cwd=gated)
    wait_for(lambda: (gated / "begun").exists(), "the stage begins", 120)
    job = start("shardline", "repro", cwd=gated)
    lines = said(job, "waiting for it")
    assert f"(process {first.pid})" in lines[-1]
    assert "Running stage" not in "".join(lines)
    (gated / "go").touch()
    for process in (first, job):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    assert "Running stage 'train'" in output


def test_dvc_beside_a_job_is_refused_before_it_changes_anything(start: Start, run: Run, gated: Path) -> None:
    """The job is first. DVC's own commands name it and leave all as it is; `shardline dvc` and a second job wait."""
    job = start("shardline", "repro", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    files = {file: file.read_bytes() for file in (gated / "params.yaml", gated / "dvc.lock")}
    alone = ["repro", "--force", "--single-item"]
    for command in (["exp", "run", "--set-param", "train.lr=0.002"], [*alone, "package"], [*alone, "ingest"]):
        refused = run("dvc", *command, cwd=gated, code=255)
        assert f"(PID {job.pid}" not in refused.stderr  # the process that holds the table is below it
        assert "`shardline repro` (process" in refused.stderr, "also where the job's stage has nothing to do with it"
    assert {file: file.read_bytes() for file in files} == files
    assert (gated / "data" / "package").exists()
    run("dvc", "status", "ingest", cwd=gated)
    later = start("shardline", "dvc", "exp", "run", "--set-param", "train.lr=0.002", cwd=gated)
    assert f"`shardline repro` (process {job.pid}, since " in "".join(said(later, "waiting for it"))
    (gated / "open").touch()
    for process in (job, later):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    assert "Ran experiment(s)" in output
    assert (
        json.loads(run("dvc", "params", "diff", "--json", cwd=gated).stdout)["params.yaml"]["train.lr"]["new"] == 0.002
    )


def test_a_stage_by_hand_waits_for_the_job(start: Start, gated: Path) -> None:
    job = start("shardline", "repro", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    stage = start("shardline", "evaluate", cwd=gated)
    assert f"`shardline repro` (process {job.pid}, since " in "".join(said(stage, "waiting for it"))
    (gated / "open").touch()
    assert job.wait(120) == 0
    assert stage.wait(120) == 0


def test_a_stage_by_hand_waits_for_a_job_that_is_between_its_stages(start: Start, project: Path) -> None:
    """No stage is at work: the job alone keeps it out."""
    job = start(sys.executable, "-c", BETWEEN, cwd=project)
    said(job, "in")
    stage = start("shardline", "ingest", cwd=project)
    assert f"(process {job.pid}, since " in "".join(said(stage, "waiting for it"))
    assert not (project / "data" / "raw").exists()
    (project / "open").touch()
    assert stage.wait(120) == 0


def test_a_job_waits_for_a_stage_by_hand(start: Start, gated: Path) -> None:
    stage = start("shardline", "train", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    job = start("shardline", "repro", "--until", "train", cwd=gated)
    assert f"`shardline train` (process {stage.pid}, since " in "".join(said(job, "waiting for it"))
    (gated / "open").touch()
    assert stage.wait(120) == 0
    assert job.wait(120) == 0


def test_parameters_that_change_while_a_stage_runs_are_not_recorded_as_its_own(
    start: Start, run: Run, gated: Path
) -> None:
    """By DVC's own way the model of 0.003 would be the model of 0.5; what the stage doesn't read may change."""
    job = start("shardline", "repro", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    values = yaml.safe_load((gated / "params.yaml").read_text())
    write_params(gated, {**values, "train": {**values["train"], "lr": 0.5}, "package": {"description": "other"}})
    (gated / "open").touch()
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 2, output
    assert "params.yaml: train changed while train was at work" in output
    assert "train" in json.loads(run("dvc", "status", "--json", cwd=gated).stdout)


@pytest.mark.parametrize("code", [2, 12, 130, 143])
def test_a_stage_s_exit_code_is_the_job_s(run: Run, copied: Path, code: int) -> None:
    (copied / "trainer.py").write_text(
        "import sys\nfrom storage.errors import *\n\ndef train(job):\n"
        "    errors = ParamsError('x'), OutOfMemory('x'), Interrupted('x', 2), Interrupted('x', 15)\n"
        f"    raise {{error.exit_code: error for error in errors}}[{code}]\n"
    )
    write_params(copied, {**TINY, "train": {**TINY["train"], "entrypoint": "trainer:train"}})  # type: ignore[dict-item]
    run("shardline", "repro", cwd=copied, code=code)


def test_another_dvc_command_at_a_stage_s_end_does_not_undo_it(start: Start, run: Run, gated: Path) -> None:
    """DVC gives up after 3 s when the project's lock is taken as a stage ends; a job waits."""
    job = start("shardline", "repro", "--until", "train", cwd=gated)
    wait_for(lambda: training(gated), "training starts", 120)
    hold = "import sys, zc.lockfile; held = zc.lockfile.LockFile('.dvc/tmp/lock'); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=gated, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (gated / "open").touch()
        wait_for(lambda: not stages(gated), "training ends", 120)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(4)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.close()
    output = job.communicate(timeout=60)[0]
    assert job.returncode == 0, output
