"""`shardline doctor` on this machine, a profile of two ranks, and what a run carries of both."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY, Run, write_params
from support.release_samples import place_store
from support.servers import free_port
from support.training_samples import make_points, train_params

from pipelines.machine.doctor import short_form
from pipelines.profiling.profile import profile
from pipelines.runtime.cores import cores
from pipelines.training import train
from pipelines.workspace import Workspace

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("diagnosis")]  # the warnings are MLflow's


@pytest.mark.long
def test_doctor_measures_finds_problems_and_leaves_rates_to_the_runs(run: Run, tmp_path: Path) -> None:
    port = free_port()
    lake = {"url": "s3://nowhere/lake"}
    hot = {"url": f"redis://:secret@127.0.0.1:{port}"}
    train_settings = {**TINY["train"], "threads": cores() + 1}  # type: ignore[dict-item]
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


def test_a_run_says_where_it_ran_and_what_it_took(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ws = make_points(tmp_path, train=train_params(price_per_hour=36.0))
    place_store(ws, database)
    first = train(ws)
    run_id = json.loads((ws.model / "run.json").read_text())["run_id"]

    from mlflow import MlflowClient

    client = MlflowClient(ws.tracking_uri)
    found = client.get_run(run_id).data
    assert 0 < found.metrics["spent/seconds"] < 120
    assert found.metrics["spent/cost"] == pytest.approx(found.metrics["spent/seconds"] / 100)
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


@pytest.mark.long
def test_a_profile_of_two_ranks_and_what_is_kept(database: Path, tmp_path: Path) -> None:
    """Gradients of 2.4 MB go over the loopback in each step of little work; nothing of the training is touched."""
    ws = make_points(
        tmp_path / "project", model={"name": "mlp", "args": {"hidden": [768, 768]}}, stream={"batch_size": 2},
        train=train_params(ranks=2, checkpoint_every=1, checkpoints={"url": "kept", "keep_every": 1}),
    )  # fmt: skip
    place_store(ws, database)
    before = {file: file.read_bytes() for file in ws.root.rglob("*") if file.is_file() and "mlflow" not in file.parts}
    bottleneck = profile(ws, warm_up=3, seconds=0.2)
    shares = bottleneck.figures.shares
    assert shares["network"] > max(shares["memory"], shares["compute"], shares["data"])
    assert bottleneck.figures.ranks == 2

    kept = ws.state / "profile"
    after = {file: file.read_bytes() for file in before}
    assert after == before
    new = {file for file in ws.root.rglob("*") if file.is_file() and "mlflow" not in file.parts} - set(before)
    assert {file.parent for file in new} == {kept}
    names = {"profile.json", "profile.png", "trace.json.gz", "bottleneck.txt"}
    assert {file.name for file in new} == names
    facts = json.loads((kept / "profile.json").read_text())
    assert facts["bound"] == bottleneck.bound
    assert sum(facts["figures"]["shares"].values()) == pytest.approx(1)
    with gzip.open(kept / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    assert (kept / "profile.png").read_bytes().startswith(b"\x89PNG")

    from mlflow import MlflowClient

    client = MlflowClient(ws.tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert run.data.tags["kind"] == "profile"
    assert run.data.tags["bound"] == bottleneck.bound
    assert run.data.metrics["profile/network_share"] == pytest.approx(bottleneck.figures.shares["network"])
    assert {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "profile")} == names
