"""prefect.yaml on a real server with a real worker: deployed, run to the end, cancelled without a trace."""

import json
import re
import sqlite3
from pathlib import Path

import psutil
import pytest
from conftest import TINY, Run, write_params, write_texts
from support.prefect_service import Deployed, Nightly, alive_below, until
from support.servers import wait_for

from storage.manifest import Manifest

pytestmark = pytest.mark.xdist_group("prefect")


def test_all_are_deployed(deployed: Deployed) -> None:
    prefect = deployed.prefect
    nightly, on_demand = prefect.deployment("pipeline/nightly"), prefect.deployment("train/on-demand")
    assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 2 * * *"]
    assert on_demand["schedules"] == []
    assert {nightly["work_pool_name"], on_demand["work_pool_name"]} == {"shardline"}
    assert nightly["parameters"] == on_demand["parameters"] == {"recipe": "python_lm"}
    assert prefect.deployment("warm/fill")["parameters"] == {"recipe": "python_lm", "tier": "both"}
    until(lambda: prefect.scheduled("pipeline/nightly") > 0, "runs planned by the schedule")
    limits = prefect.call("POST", "concurrency_limits/filter", {})
    assert [(limit["tag"], limit["concurrency_limit"]) for limit in limits] == [("shardline-dvc", 1)]


def test_deploying_again_changes_nothing(deployed: Deployed, run: Run) -> None:
    prefect = deployed.prefect
    before = prefect.deployment("pipeline/nightly")
    run("prefect", "--no-prompt", "deploy", "--name", "nightly", cwd=deployed.checkout, env=prefect.env)
    after = prefect.deployment("pipeline/nightly")
    assert after["id"] == before["id"]
    assert len(after["schedules"]) == 1


def test_the_worker_does_the_whole_job_and_reports(nightly: Nightly, run: Run) -> None:
    prefect, recipe = nightly.deployed.prefect, nightly.recipe
    assert nightly.state == "COMPLETED"
    assert json.loads(run("dvc", "status", "--json", "dvc.yaml", cwd=recipe).stdout) == {}
    assert "in sync" in run("dvc", "status", "--cloud", "dvc.yaml", cwd=recipe).stdout

    summary = prefect.summary(nightly.flow_run)
    mlflow_run = json.loads((recipe / "data/model/run.json").read_text())["run_id"]
    bits = json.loads((recipe / "metrics/evaluate.json").read_text())["bits_per_byte"]
    assert Manifest.load(recipe / "data/shards").digest in summary
    assert f"bits_per_byte {bits:.4f}" in summary
    assert "is champion" in summary
    assert re.search(rf"\[{mlflow_run}\]\(http://127.0.0.1:5000/#/experiments/\d+/runs/{mlflow_run}\)", summary)
    assert len(re.findall(r"\| ran \|", summary)) == 8
    assert "train: transformer" in prefect.logs(prefect.steps(nightly.flow_run)["train tiny"])

    # And back: the MLflow run knows the flow run, and how to open it.
    with sqlite3.connect(nightly.deployed.checkout / ".shardline/mlflow/mlflow.db") as store:
        rows = store.execute("SELECT key, value FROM tags WHERE run_uuid = ? AND key LIKE 'prefect%'", [mlflow_run])
        tags = dict(rows.fetchall())
    store.close()
    assert tags == {
        "prefect.flow_run_id": nightly.flow_run,
        "prefect.flow_run_url": f"{prefect.url}/runs/flow-run/{nightly.flow_run}",
    }


def test_a_stopped_training_goes_on_and_a_cancelled_one_leaves_no_process(deployed: Deployed, run: Run) -> None:
    prefect, worker = deployed.prefect, deployed.worker
    recipe = endless_training(deployed.checkout, run)
    before = set(worker.children(recursive=True))
    flow_run = prefect.start("train/on-demand", recipe="endless", retries=1, retry_delay=0)
    wait_for(lambda: newest_step(recipe) > 0, "a checkpoint", 120)
    first, saved = ranks(recipe), newest_step(recipe)
    assert len(first) == 2

    # The machine is taken away: the training is told from a failed one, and goes on.
    next(p for p, command in alive_below(recipe).items() if command[1:] and command[-1] == "train").terminate()
    wait_for(lambda: len(ranks(recipe) - first) == 2 and newest_step(recipe) > saved + 4, "more steps", 120)
    log = prefect.logs(flow_run)
    assert "was stopped by signal 15" in log

    processes = [*alive_below(recipe), *(set(worker.children(recursive=True)) - before)]
    prefect.call("POST", f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert prefect.wait(flow_run) == "CANCELLED"
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    assert not alive_below(recipe)
    assert prefect.logs(flow_run).count("its state is saved") >= 2

    # Nothing half-written.
    assert not (recipe / "data" / "model").exists()


def ranks(recipe: Path) -> set[psutil.Process]:
    return {
        process for process, command in alive_below(recipe).items() if "pipelines.training.launchers.main" in command
    }


def newest_step(recipe: Path) -> int:
    """Of the checkpoints; 0 where there is none."""
    found = (recipe / ".shardline" / "checkpoints").glob("*/step-*")
    return max((int(folder.name.removeprefix("step-")) for folder in found), default=0)


#: Its steps take long, not much of the processor.
PATIENT = """
import time
from pipelines.models.architectures.transformer import Transformer

class Patient(Transformer):
    def forward(self, *inputs):
        time.sleep(0.1)
        return super().forward(*inputs)
"""


def endless_training(checkout: Path, run: Run) -> Path:
    """A recipe with its data made, that trains on two ranks for longer than anyone waits."""
    recipe = checkout / "recipes" / "endless"
    write_texts(recipe / "texts")
    (recipe / "patient.py").write_text(PATIENT)
    train = {**TINY["train"], "steps": 10_000_000, "ranks": 2, "checkpoint_every": 2}  # type: ignore[dict-item]
    model = {"name": "patient:Patient", "args": TINY["model"]["args"]}  # type: ignore[index]
    write_params(recipe, {**TINY, "recipe": "endless", "model": model, "train": train})
    for stage in ("ingest", "curate", "shard"):
        run("shardline", stage, cwd=recipe)
    return recipe
