"""Runs in a real MLflow: what is recorded, how it resumes, and that an outage never stops the work."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.release_samples import make_workspace, mlflow_server, place_store, write_model
from support.servers import free_port, wait_for

from pipelines.tracking import connect, lineage_tags, open_run, recorded_run_id
from pipelines.workspace import Workspace
from storage.errors import FormatError, TrackingError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


@pytest.fixture
def ws(tmp_path: Path, database: Path) -> Workspace:
    """A workspace with shards and a model, and an empty store of its own."""
    workspace = make_workspace(tmp_path / "project", "image")
    place_store(workspace, database)
    return workspace


def on(uri: str, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Workspace.open(ws.root)


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_a_run_holds_all_that_was_logged(ws, capfd):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    (ws.root / "plots").mkdir()
    (ws.root / "plots" / "train.csv").write_text("a,b\n")
    zone = ws.zone("shards")
    with open_run(ws) as run:
        run.log_params({f"p{i}": i for i in range(250)})  # more than MLflow takes at once
        for step in range(1500):
            run.log_metrics({"loss": 1 / (step + 1), "lr": 0.1}, step=step)
        run.log_metrics({"test.accuracy": 0.9})
        run.set_tags({"task": "classification"})
        run.log_artifact(ws.root / "plots", "plots")
        run.log_figure(figure, "plots/curve.png")
        run.log_dataset(zone.manifest(), zone, "train")
    client = run.store.client
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {f"p{i}": str(i) for i in range(250)}
    assert len(client.get_metric_history(run.id, "loss")) == 1500
    assert found.data.metrics["test.accuracy"] == 0.9
    assert found.data.tags["task"] == "classification"
    assert {item.path for item in client.list_artifacts(run.id, "plots")} == {"plots/train.csv", "plots/curve.png"}
    assert client.get_metric_history(run.id, "system/cpu_utilization_percentage")
    assert run.id in run.url
    assert run.url.startswith("make ui")
    dataset = found.inputs.dataset_inputs[0]
    digest = zone.manifest().digest
    assert dataset.dataset.digest == digest[:36]
    assert {tag.key: tag.value for tag in dataset.tags} == {"mlflow.data.context": "train", "manifest": digest}
    assert json.loads(dataset.dataset.profile)["rows"] == 40
    assert json.loads(dataset.dataset.source) == {"uri": str(zone.folder)}
    assert [c["name"] for c in json.loads(json.loads(dataset.dataset.schema)["mlflow_tensorspec"]["features"])] == [
        "x",
        "label",
    ]
    assert capfd.readouterr().err == ""  # no migration chatter, no warnings


def test_a_run_says_where_its_data_lies_without_the_password(ws):
    zone = replace(ws.zone("shards"), url="s3://key:s3cret@bucket/lake")
    with open_run(ws) as run:
        run.log_dataset(zone.manifest(), zone, "train")
    (found,) = run.store.client.get_run(run.id).inputs.dataset_inputs
    assert json.loads(found.dataset.source) == {"uri": "s3://key:***@bucket/lake"}


def test_artifacts_lie_in_the_project_and_nothing_in_the_current_folder(ws, monkeypatch):
    elsewhere = ws.root / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with open_run(ws) as run:
        run.log_artifact(ws.root / "params.yaml")
    assert list((ws.project / ".shardline" / "mlflow" / "artifacts").rglob("params.yaml"))
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{", "\ud800"])
def test_a_damaged_reference_to_a_run_is_named(ws, text):
    (ws.model / "run.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(FormatError, match=r"run\.json: not a run's reference"):
        recorded_run_id(ws)


def test_opening_a_run_leaves_the_environment_of_mlflow_alone(ws, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    open_run(ws).close()
    assert os.environ["MLFLOW_RUN_ID"] == "abc"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_killed_run_goes_on_without_doubling_its_points(ws):
    first = open_run(ws)
    first.log_params({"lr": 0.1, "ranks": 1})
    first.log_metrics({"loss": 2.0}, step=1)
    first.log_metrics({"loss": 1.5}, step=2)
    assert first.flush()
    first.close("KILLED")
    with open_run(ws, run_id=first.id) as run:
        assert (run.id, run.reopened) == (first.id, True)
        assert run.store.client.get_run(run.id).info.status == "RUNNING"
        run.log_params({"lr": 0.1, "ranks": 2})
        run.log_metrics({"loss": 1.5}, step=2)  # repeated after the checkpoint
        run.log_metrics({"loss": 1.2}, step=3)
    found = run.store.client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert [(m.step, m.value) for m in run.store.client.get_metric_history(run.id, "loss")] == [
        (1, 2.0),
        (2, 1.5),
        (3, 1.2),
    ]
    assert found.data.params == {"lr": "0.1", "ranks": "1"}
    assert found.data.tags["changed.ranks"] == "2"


def test_a_finished_run_keeps_its_end_when_it_is_added_to(ws):
    first = open_run(ws)
    first.close()
    end = first.store.client.get_run(first.id).info.end_time
    with open_run(ws, run_id=first.id) as run:
        run.log_metrics({"test.accuracy": 0.5})
    found = run.store.client.get_run(first.id)
    assert (found.info.status, found.info.end_time) == ("FINISHED", end)
    assert found.data.metrics["test.accuracy"] == 0.5


def test_a_run_that_the_store_has_not_got_is_replaced(ws):
    write_model(ws, run_id="0" * 32)
    with open_run(ws, run_id=recorded_run_id(ws)) as run:
        assert run.id not in (None, "0" * 32)
        assert not run.reopened


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_a_run_ends_as_its_work_did(ws, error, status):
    run = open_run(ws)
    with pytest.raises(type(error)), run:
        raise error
    assert connect(ws).client.get_run(run.id).info.status == status


def test_what_mlflow_refuses_is_said_and_the_rest_is_kept(ws, capfd):
    with open_run(ws) as run:
        run.set_tags({"bad\nkey!": "x"})
        run.log_artifact(ws.root / "nowhere.png")
        run.log_metrics({"loss": 1.0}, step=1)
    said = capfd.readouterr().err
    assert "refused tags" in said
    assert "nowhere.png" in said
    assert connect(ws).client.get_run(run.id).data.metrics["loss"] == 1.0


def test_lineage_names_git_dvc_data_and_prefect(ws, monkeypatch):
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ws.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "f1")
    monkeypatch.setenv("SHARDLINE_FLOW_RUN_URL", "http://prefect/f1")
    assert "git.commit" not in lineage_tags(ws)
    git("init", "--quiet")
    (ws.root / ".gitignore").write_text("data/\n.shardline/\n")
    (ws.root / "dvc.lock").write_text("schema: '2.0'\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    (ws.root / "dvc.lock").write_text("schema: '2.0'\n# a stage ran\n")
    tags = lineage_tags(ws)
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["git.dirty"] == "false"  # what stages write does not count
    assert tags["data.shards"] == ws.zone("shards").manifest().digest
    assert "data.raw" not in tags
    assert len(tags["dvc.lock"]) == 64
    assert (tags["recipe"], tags["dvc.experiment"]) == ("image_test", "brave-lynx")
    assert (tags["prefect.flow_run_id"], tags["prefect.flow_run_url"]) == ("f1", "http://prefect/f1")
    with open_run(ws, kind="training") as run:
        pass
    assert connect(ws).client.get_run(run.id).info.run_name == "image_test brave-lynx: first"
    with (ws.root / "params.yaml").open("a") as file:
        file.write("# changed\n")
    assert lineage_tags(ws)["git.dirty"] == "true"


@pytest.mark.long
def test_first_starts_side_by_side_make_one_whole_database(tmp_path):
    ws = make_workspace(tmp_path / "project", "image")
    code = (
        "import sys; from pathlib import Path; from pipelines.workspace import Workspace\n"
        "from pipelines.tracking import open_run\n"
        "run = open_run(Workspace.open(Path(sys.argv[1]))); run.close(); print(run.id, run.experiment_id)"
    )

    def start(_: int) -> str:
        command = [sys.executable, "-W", "ignore", "-c", code, str(ws.root)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        lines = [line.split() for line in pool.map(start, range(2))]
    ids = {run for run, _ in lines}
    assert len(ids) == 2
    assert "None" not in ids
    assert len({experiment for _, experiment in lines}) == 1
    assert {item.name for item in (ws.project / ".shardline" / "mlflow").iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


# -- outages ---------------------------------------------------------------------------------------------------------


def use_all(run: object, ws: Workspace) -> None:
    """Every method once, as a training would."""
    zone = ws.zone("shards")
    run.log_params({"a": 1})
    run.log_metrics({"loss": 1.0}, step=1)
    run.set_tags({"b": "c"})
    run.log_artifact(ws.root / "params.yaml")
    run.log_dataset(zone.manifest(), zone, "train")


def test_nothing_listens_at_the_start(ws, monkeypatch, capfd):
    port = free_port()
    away = on(f"http://user:secret@127.0.0.1:{port}", ws, monkeypatch)
    begin = time.perf_counter()
    with open_run(away) as run:
        use_all(run, away)
        assert not run.flush()
    assert time.perf_counter() - begin < 10
    assert (run.id, run.url) == (None, None)
    assert run.reference() == {
        "run_id": None,
        "experiment": "image_test",
        "tracking_uri": f"http://127.0.0.1:{port}",
    }
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"http://127.0.0.1:{port}" in said
    assert "connection refused" in said
    assert "MLFLOW_TRACKING_URI" in said
    assert "secret" not in said
    with pytest.raises(TrackingError, match="connection refused"):
        connect(away)


def test_a_server_that_accepts_and_never_answers(ws, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = on(f"http://127.0.0.1:{silent.getsockname()[1]}", ws, monkeypatch)
        begin = time.perf_counter()
        run = open_run(away)
        assert time.perf_counter() - begin < 6
    assert run.id is None
    assert "does not answer in time" in capfd.readouterr().err


def until(said: Callable[[], str], words: str) -> None:
    seen = ""

    def ready() -> bool:
        nonlocal seen
        seen += said()
        return words in seen

    wait_for(ready, words)


@pytest.mark.long
def test_a_server_that_hangs_recovers_and_dies(ws, database, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    port = free_port()
    shutil.copy(database, tmp_path / "server.db")
    remote = on(f"http://127.0.0.1:{port}", ws, monkeypatch)
    with mlflow_server(tmp_path / "server", tmp_path / "server.db", port) as server:
        run = open_run(remote)
        use_all(run, remote)
        assert run.flush(60)
        assert run.url == f"http://127.0.0.1:{port}/#/experiments/{run.experiment_id}/runs/{run.id}"
        capfd.readouterr()
        os.killpg(server.pid, signal.SIGSTOP)
        for step in range(2, 12):  # nobody answers: logging still takes no time
            begin = time.perf_counter()
            run.log_metrics({"loss": 1 / step}, step=step)
            assert time.perf_counter() - begin < 0.5
        until(lambda: capfd.readouterr().err, "cannot be reached")
        run.set_tags({"later": "yes"})
        os.killpg(server.pid, signal.SIGCONT)
        until(lambda: capfd.readouterr().err, "answers again")
        assert run.flush(60)
        client = run.store.client
        assert {m.step for m in client.get_metric_history(run.id, "loss")} == set(range(1, 12))
        assert client.get_run(run.id).data.tags["later"] == "yes"
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for step in range(12, 20):
            run.log_metrics({"loss": 1 / step}, step=step)
        begin = time.perf_counter()
        run.close()
        assert time.perf_counter() - begin < 10
    said = capfd.readouterr().err
    assert said.count("cannot be reached: nothing listens there") == 1
    assert "could not be recorded" in said
