"""The flows against a real server: the same dvc.lock as `dvc repro`, retries, and nothing left running."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import REPOSITORY, TINY, Run, write_params
from support.prefect_service import Deployed, Flaky, Nightly, Prefect
from support.servers import wait_for

from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.workspace import Workspace

pytestmark = pytest.mark.xdist_group("prefect")
Flow = Callable[..., "subprocess.CompletedProcess[str]"]

#: These hold the id of the MLflow run, so that no two runs of the job have equal ones.
WITH_IDS = {"data/model", "data/package"}


# -- the same ledger -------------------------------------------------------------------------------------------------


def test_the_flow_leaves_the_lock_that_dvc_repro_leaves(nightly: Nightly, finished: Path) -> None:
    """Two runs from scratch give equal shards and equal figures, whoever runs the stages. All is compared but the
    digests and sizes of outs that hold the MLflow run's id: they differ by nature."""

    def comparable(lock: Path) -> Any:
        content = yaml.safe_load(lock.read_text())
        for stage in content["stages"].values():
            for entry in [*stage.get("deps", []), *stage["outs"]]:
                if entry["path"] in WITH_IDS:
                    entry |= {"md5": "", "size": 0}
        return content

    ours, theirs = nightly.recipe / "dvc.lock", finished / "dvc.lock"
    assert comparable(ours) == comparable(theirs)
    assert list(yaml.safe_load(ours.read_text())["stages"]) == list(yaml.safe_load(theirs.read_text())["stages"])
    # And to the byte, but for the lines that hold those digests and sizes.
    pairs = zip(ours.read_text().splitlines(), theirs.read_text().splitlines(), strict=True)
    different = {line.split(":")[0].strip() for one, other in pairs if one != other for line in (one, other)}
    assert different <= {"md5", "size"}


def test_a_second_run_does_nothing(nightly: Nightly, flow: Flow) -> None:
    prefect, checkout = nightly.deployed.prefect, nightly.deployed.checkout
    lock = (nightly.recipe / "dvc.lock").read_bytes()
    flow("pipeline", "--recipe", "tiny", cwd=checkout)
    assert (nightly.recipe / "dvc.lock").read_bytes() == lock
    assert prefect.summary(prefect.latest("pipeline")).count("| up to date |") == 8


def test_a_stage_of_somebody_s_own_runs_as_well(nightly: Nightly, finished: Path) -> None:
    """One whose command isn't `shardline STAGE`, written in dvc.yaml before what it depends on."""
    assert (nightly.recipe / "size.txt").read_text() == (finished / "size.txt").read_text()


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_and_nothing_else(deployed: Deployed, flow: Flow, run: Run) -> None:
    """The source fails when it is listed and when it is read. 151 items in eight task runs, one of them tried twice.
    Then one more source file is one more item; and the step, run alone, is recorded: DVC finds it up to date."""
    prefect, recipe = deployed.prefect, deployed.checkout / "recipes" / "flaky"
    flow("ingest", "--recipe", "flaky", cwd=deployed.checkout)
    assert Flaky.failed == {"question", "read"}
    ingest = prefect.latest("ingest")
    tasks = prefect.tasks(ingest)
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    tries = {name: sorted(t["run_count"] for t in tasks if t["name"].startswith(name)) for name in ("plan", "work")}
    assert tries == {"plan": [2], "work": [1] * 7 + [2]}
    assert "cannot be read" in prefect.logs(ingest)
    assert "ingest: 151 of 151 items worked" in prefect.logs(ingest)

    shutil.copy(recipe / "texts" / "doc000.txt", recipe / "texts" / "new.txt")
    flow("ingest", "--recipe", "flaky", cwd=deployed.checkout)
    assert "ingest: 1 of 152 items worked" in prefect.logs(prefect.latest("ingest"))
    assert json.loads(run("dvc", "status", "--json", "ingest", cwd=recipe).stdout) == {}


def test_wrong_input_by_hand(flow: Flow, tmp_path: Path, run: Run) -> None:
    write_params(tmp_path, TINY)
    run("git", "init", "--quiet", cwd=tmp_path)
    run("dvc", "init", "--quiet", cwd=tmp_path)
    done = flow("pipeline", "--recipe", "nope", cwd=tmp_path, code=2)
    assert "No recipe 'nope'" in done.stderr
    assert "Traceback" not in done.stderr


# -- the supervisor --------------------------------------------------------------------------------------------------

SUPERVISOR = [sys.executable, "-P", str(REPOSITORY / "flows" / "tasks" / "supervisor.py")]
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
orphan = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", orphan], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
time.sleep(600)
"""
CARELESS = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"


SLOW = """
import time
from pathlib import Path
from pipelines.models.architectures.transformer import Transformer

class Slow(Transformer):
    def forward(self, *inputs):
        Path("begun").touch()
        while not Path("open").exists():
            time.sleep(0.02)
        return super().forward(*inputs)
"""


def supervised(code: str, grace: float = 60) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SUPERVISOR, str(grace), sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_supervisor_hands_on_exit_codes_and_signals() -> None:
    with supervised("raise SystemExit(7)") as process:
        assert process.wait(60) == 7
    with supervised("import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(60) == 128 + 9
    with supervised(POLITE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(60) == 143


def test_the_supervisor_leaves_nothing_behind() -> None:
    with supervised(CARELESS) as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        assert process.wait(60) == 0
        assert not psutil.pid_exists(left)


def test_the_supervisor_outlives_its_owner_only_for_the_grace_time(tmp_path: Path) -> None:
    """The owner is killed; the command ignores SIGTERM, and has an orphan in another session."""
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(STUBBORN)
    command = [*SUPERVISOR, "0.5", sys.executable, str(stubborn)]
    owner_code = f"import subprocess; subprocess.Popen({command!r}, stdin=subprocess.PIPE).wait()"
    owner = subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    orphan = int(owner.stdout.readline())
    assert owner.stdout.readline() == "ready\n"
    below = [psutil.Process(orphan), *psutil.Process(owner.pid).children(recursive=True)]
    assert len(below) >= 3  # the orphan, the supervisor, the command
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert psutil.wait_procs(below, timeout=30)[1] == []
    owner.stdout.close()


# -- asking and telling DVC ------------------------------------------------------------------------------------------


def test_one_run_at_a_time_in_a_recipe(project: Path, environment: dict[str, str]) -> None:
    """A second process waits until the first is done, or dead."""
    code = (
        "import sys; from pipelines.reproduce.writer import exclusive; from pipelines.workspace import Workspace\n"
        "ws = Workspace.open()\n"
        "with exclusive(ws), exclusive(ws): print('in', flush=True); sys.stdin.read()"
    )

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=project, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    with start() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with start() as second:
            assert second.stdout is not None
            assert second.stdin is not None
            assert "waiting for it" in second.stdout.readline()
            first.kill()
            assert second.stdout.readline() == "in\n"
            second.stdin.close()
            assert second.wait(60) == 0


@pytest.mark.long
def test_a_flow_waits_for_dvc_exp_run(prefect: Prefect, copied: Path, environment: dict[str, str]) -> None:
    """DVC came first, by itself. The flow goes on when it has ended, and finds nothing to do."""
    (copied / "slow.py").write_text(SLOW)
    model = {**TINY["model"], "name": "slow:Slow"}  # type: ignore[dict-item]
    write_params(copied, {**TINY, "model": model})
    depend_on_code(Workspace.open(copied))

    def start(*command: str, env: dict[str, str]) -> "subprocess.Popen[str]":
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=copied, env=env, text=True, stdin=none, stdout=pipe, stderr=subprocess.STDOUT
        )

    with start("dvc", "exp", "run", "--set-param", "train.lr=0.002", env=environment) as experiment:
        wait_for(lambda: (copied / "begun").exists(), "training starts", 120)
        with start(sys.executable, "-m", "flows.pipeline", env=prefect.env) as flow:
            try:
                assert flow.stdout is not None
                said = next((line for line in flow.stdout if "waiting for it" in line), "nothing")
                assert f"exp run --set-param train.lr=0.002` (process {experiment.pid}, since " in said
                (copied / "open").touch()
                output = experiment.communicate(timeout=120)[0]
                assert experiment.returncode == 0, output
                output = flow.communicate(timeout=120)[0]
                assert flow.returncode == 0, output
            finally:
                for process in (flow, experiment):
                    process.kill()
    assert prefect.summary(prefect.latest("pipeline")).count("| up to date |") == 8


def test_outs_go_before_a_stage_runs_but_persistent_ones_stay(project: Path) -> None:
    from pipelines.reproduce import status

    ws = Workspace.open(project)
    assert list(status.stages(ws)) == ["ingest", "curate", "shard", "train", "evaluate", "package", "promote"]
    for path in ("data/model/old", "metrics/train.json", "plots/train.csv", "data/shards/kept", "data/promotion.json"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("x")
    for stage in ("train", "shard", "promote"):
        status.clear_outs(ws, stage)
    left = {
        str(file.relative_to(project))
        for folder in ("data", "metrics", "plots")
        for file in (project / folder).rglob("*")
    }
    assert left == {"data/shards", "data/shards/kept", "data/promotion.json"}


def test_the_reasons_why_a_stage_is_stale(project: Path) -> None:
    from pipelines.reproduce import status

    stale = status.stale(Workspace.open(project))
    assert set(stale) == set(status.stages(Workspace.open(project)))
    assert stale["shard"] == ["data/curated deleted", "params.yaml new", "data/shards deleted"]
