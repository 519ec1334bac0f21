"""What people read of runs in a real MLflow: names, descriptions, groups of curves; where artifacts and links lead."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.release_samples import make_workspace, place_store, write_metrics, write_model, write_shards

from pipelines.params.schema.flat import flat
from pipelines.release import package, promote
from pipelines.release.registry import version_files
from pipelines.tracking import connect, open_run
from pipelines.tracking.embedded import relocate
from pipelines.tracking.names import constants, grouped, result_name, results
from pipelines.tracking.pages.run_names import run_name
from pipelines.tracking.recorded import where_is_the_run
from pipelines.workspace import Workspace

#: Names of files → names in MLflow.
CURVES = {
    "train_loss": "train/loss", "lr": "train/lr", "gradient_norm": "train/gradient_norm",
    "batch_size": "train/batch_size", "val_loss": "val/loss", "val_loss/code": "val/loss/code",
    "val_accuracy": "val/accuracy", "cut_share": "stream/cut_share", "stream_fetch_share": "stream/fetch_share",
    "tokens_per_second": "speed/tokens_per_second", "wait_share": "speed/wait_share",
    "communication_share": "communication/communication_share", "sent_mb_per_step": "communication/sent_mb_per_step",
    "seconds": "spent/seconds", "energy_kwh": "spent/energy_kwh", "mixture/code": "mixture/code",
    "system/cpu": "system/cpu", "anything": "anything", "f1.train_loss": "f1.train_loss",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


@pytest.fixture
def ws(tmp_path: Path, database: Path) -> Workspace:
    """A workspace with shards and a model, and an empty store of its own."""
    workspace = make_workspace(tmp_path / "project", "image")
    place_store(workspace, database)
    return workspace


# -- what people read ------------------------------------------------------------------------------------------------


def changed(ws: Workspace, **sections: object) -> Workspace:
    """The same recipe with other parameters."""
    file = ws.root / "params.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | sections))
    return Workspace.open(ws.root)


def test_a_training_is_called_by_what_changed_and_described(ws):
    def train(ws: Workspace) -> tuple[str, str]:
        with open_run(ws, kind="training") as run:
            run.log_params(flat(ws.params.model_dump(exclude={"compute"})))
        found = connect(ws).client.get_run(run.id)
        return found.info.run_name, found.data.tags["mlflow.note.content"]

    name, note = train(ws)
    assert name == "image_test: first"
    assert "changed" not in note
    digest = ws.zone("shards").manifest().digest
    assert f"| data | `{digest[:12]}` (test 40, train 40 rows), of `data/*` |" in note
    assert "| command | `shardline repro` |" in note
    assert train(ws)[0] == "image_test: same again"
    with open_run(ws, name="profile", kind="profile"):  # counts for no training's name
        pass
    train_section = {"steps": 1, "device": "cpu", "threads": 1, "lr": 0.5}
    name, note = train(changed(ws, seed=3, train=train_section))
    assert name == "image_test: seed 0 → 3, train.lr 0.001 → 0.5"
    assert "| changed | seed 0 → 3, train.lr 0.001 → 0.5, since [the training before](#/experiments/1/runs/" in note
    assert {run.info.run_name for run in connect(ws).client.search_runs(["1"])} >= {"image_test profile"}
    write_shards(ws, "image", 41)
    assert train(Workspace.open(ws.root))[0].startswith(f"image_test: data {digest[:7]} → ")


def test_a_trainings_result_comes_into_its_description_and_into_no_other_runs(ws):
    """As the evaluate stage does it, long before the model is promoted."""
    notes = {}
    for kind in ("training", "profile"):
        with open_run(ws, kind=kind) as run:
            run.describe(ws, metrics={"accuracy": 0.75})
        notes[kind] = connect(ws).client.get_run(run.id).data.tags.get("mlflow.note.content")
    assert "| result | **accuracy 0.7500** on the test split |" in notes["training"]
    assert notes["profile"] is None


def test_a_name_tells_three_changes_and_how_many_more():
    assert run_name("digits", None, ["a 1 → 2", "b 1 → 2", "c 1 → 2", "d 1 → 2"]) == (
        "digits: a 1 → 2, b 1 → 2, c 1 → 2 and 1 more"
    )


def test_curves_are_in_groups_and_other_names_as_they_are(ws):
    assert {name: grouped(name) for name in CURVES} == CURVES
    with open_run(ws) as run:
        run.log_metrics(dict.fromkeys(CURVES, 1.0), step=1)
    assert set(connect(ws).client.get_run(run.id).data.metrics) >= set(CURVES.values())
    assert result_name("test", "domains.code.bits_per_byte") == "test/domains/code/bits_per_byte"
    figures = {
        "accuracy": 0.9,
        "samples": 40,
        "baseline.majority.accuracy": 0.5,
        "domains.a.baseline.majority.loss": 1.0,
    }
    assert results(figures) == {"accuracy": 0.9}
    assert constants(figures) == {"samples": "40", "baseline.majority.accuracy": "0.5"}


def test_the_registry_describes_models_and_versions_and_the_run_tells_the_decision(ws):
    ws = changed(ws, package={"description": "Tells dark from light."})
    with open_run(ws, kind="training") as run:
        write_model(ws, run_id=run.id)
    write_metrics(ws, accuracy=0.9, baseline={"majority": {"accuracy": 0.5}})
    package(ws)
    promote(ws)
    client = connect(ws).client
    model = client.get_registered_model("image_test")
    assert model.description.startswith("Tells dark from light.")
    assert "| gate | `accuracy`: better than the champion by at least 0.01 |" in model.description
    version = client.get_model_version("image_test", "1")
    assert "| result | **accuracy 0.9000** on the test split |" in version.description
    assert f"[image_test: first](#/experiments/1/runs/{run.id})" in version.description
    note = client.get_run(run.id).data.tags["mlflow.note.content"]
    assert "| result | **accuracy 0.9000** on the test split |" in note
    assert "| gate | passed: " in note
    assert "[image_test version 1](#/models/image_test/versions/1)" in note
    experiment = client.get_experiment_by_name("image_test")
    assert experiment.tags["mlflow.note.content"].startswith("Tells dark from light.")


# -- places and secrets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_project_that_is_moved_or_copied_finds_its_artifacts(ws, way, tmp_path):
    """Runs, logged models and versions: MLflow keeps absolute places of all."""
    with open_run(ws) as run:
        run.log_artifact(ws.root / "params.yaml")
        write_model(ws, run_id=run.id)
    write_metrics(ws, accuracy=0.9)
    package(ws)
    promote(ws)
    target = tmp_path / "a folder with blanks" / "project"
    target.parent.mkdir()
    (shutil.move if way == "moved" else shutil.copytree)(ws.root, target)
    other = Workspace.open(target)
    assert where_is_the_run(other).endswith(run.id)
    store = connect(other)
    folder = Path(store.client.download_artifacts(run.id, ""))
    assert folder.is_relative_to(target)
    assert (folder / "params.yaml").is_file()
    version = store.client.get_model_version_by_alias("image_test", "champion")
    with version_files(store, version) as files:
        assert files.is_relative_to(target)
        assert (files / "MLmodel").is_file()
    with open_run(other) as new:
        new.log_artifact(target / "params.yaml")
    assert len(list((target / ".shardline" / "mlflow" / "artifacts").rglob("params.yaml"))) == 2
    if way == "copied":  # the original knows nothing of it
        assert Path(connect(ws).client.download_artifacts(run.id, "")).is_relative_to(ws.root)
        assert len(list((ws.root / ".shardline" / "mlflow" / "artifacts").rglob("params.yaml"))) == 1
    assert relocate(target / ".shardline" / "mlflow" / "mlflow.db") == 0  # nothing more to do


def test_a_link_leads_only_to_a_run_that_exists(ws):
    with open_run(ws) as run:
        pass
    write_model(ws, run_id=run.id)
    path = f"#/experiments/{run.experiment_id}/runs/{run.id}"
    assert where_is_the_run(ws) == run.url == f"make ui, then http://127.0.0.1:5000/{path}"
    connect(ws).client.delete_run(run.id)
    assert where_is_the_run(ws) == f"{run.id}, which is not in {ws.tracking_uri}: it was made elsewhere, or deleted"


def test_no_secret_is_recorded(ws, monkeypatch):
    """Neither in parameters, by their names or their URLs, nor in tags, nor in the dataset's place."""
    secret = "S3cr3t"
    monkeypatch.setenv("SHARDLINE_FLOW_RUN_URL", f"http://me:{secret}@prefect/f1")
    zone = replace(ws.zone("shards"), url=f"simplecache::s3://key:{secret}@bucket/x")
    with open_run(ws) as run:
        run.log_params({
            "lake.url": f"postgres://me:{secret}@h", "cache.hot.url": f"redis://h?password={secret}",
            "train.args.hf_token": secret, "ingest.sources": [f"https://{secret}@h/x?pwd={secret}"],
        })  # fmt: skip
        run.set_tags({"note": f"from https://{secret}@h"})
        run.log_dataset(ws.zone("shards").manifest(), zone, "train")
    found = connect(ws).client.get_run(run.id)
    assert secret not in str(found.to_dictionary())
    assert found.data.params["train.args.hf_token"] == "***"
    assert found.data.tags["prefect.flow_run_url"] == "http://***@prefect/f1"
