"""`shardline doctor` on this machine, in a recipe whose lake and hot cache aren't there; a run carries its figures."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY, Run, write_params
from servers import free_port
from training_samples import make_points, train_params

from pipelines.diagnosis.doctor import short_form
from pipelines.diagnosis.hardware import usable_cores
from pipelines.training import train
from pipelines.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


def test_doctor_measures_finds_problems_and_leaves_rates_to_the_runs(run: Run, tmp_path: Path) -> None:
    port = free_port()
    lake = {"url": "s3://nowhere/lake"}
    hot = {"url": f"redis://:secret@127.0.0.1:{port}"}
    train_settings = {**TINY["train"], "threads": usable_cores() + 1}  # type: ignore[dict-item]
    write_params(tmp_path, {**TINY, "lake": lake, "train": train_settings, "cache": {"hot": hot}})
    (tmp_path / ".shardline").mkdir()
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    done = run("shardline", "doctor", "--json", cwd=tmp_path, env=env)
    facts = json.loads(done.stdout)
    assert "secret" not in done.stdout
    rates = facts["rates"]
    assert rates["matmul"]["cpu"]["float32"] > 1e9
    assert rates["memory"]["cpu"] > 1e8
    assert rates["loopback"] > 1e7
    assert rates["gloo"]["bytes_per_second"] > 1e6
    assert rates["gloo"]["latency_us"] > 0
    assert all(disk["write"] > 0 and disk["read"] > 0 and disk["free_gib"] > 0 for disk in facts["disks"])
    problems = {problem["what"].split(" (")[0]: problem["do"] for problem in facts["problems"]}
    unreachable = {"lake, raw", "lake, curated", "lake, shards", "hot cache", "MLflow"}
    assert unreachable <= problems.keys()
    assert "AWS_ENDPOINT_URL" in problems["lake, raw"]
    assert any(what.startswith("train.threads=") for what in problems)
    assert not list(tmp_path.glob(".shardline-doctor*"))

    again = short_form(Workspace.open(tmp_path))  # as a run on this machine logs it
    assert again["rates"] == rates
    assert again["processor"]["model"] == facts["processor"]["model"]


def test_a_run_says_where_it_ran_and_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ws = make_points(tmp_path, train=train_params(price_per_hour=36.0))
    first = train(ws)
    run_id = json.loads((ws.model / "run.json").read_text())["run_id"]

    from mlflow import MlflowClient

    client = MlflowClient(ws.tracking_uri)
    found = client.get_run(run_id).data
    assert 0 < found.metrics["seconds"] < 120
    assert found.metrics["cost"] == pytest.approx(found.metrics["seconds"] / 100)
    assert found.tags["machine.cores"].isdigit()
    assert found.tags["machine.processor"]
    file = Path(client.download_artifacts(run_id, "doctor.json", str(tmp_path)))
    assert json.loads(file.read_text())["system"]["host"] == found.tags["machine.host"]
    assert not {"seconds", "cost", "energy_kwh"} & first.keys()
    assert list((ws.state / "spent").iterdir()) == []

    values = yaml.safe_load((ws.root / "params.yaml").read_text())
    values["train"]["price_per_hour"] = 1.0
    (ws.root / "params.yaml").write_text(yaml.safe_dump(values))
    assert train(Workspace.open(ws.root)) == first  # another price is no other training
