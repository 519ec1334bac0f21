"""A package loads, answers and travels as an MLflow model, with its code and without pickles."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.release_samples import IMAGE, SPECS, write_metrics
from support.released import OWN_MODEL, png
from support.servers import free_port, wait_for

from pipelines.release import package, promote
from pipelines.runtime.locks import exclusive
from pipelines.serving import predict
from pipelines.tracking import connect, recorded_run_id
from pipelines.workspace import Workspace
from storage.errors import FormatError, ParamsError, TrackingError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy"}


@pytest.mark.parametrize("kind", ["text", "image", "table"])
def test_a_package_loads_and_answers_as_an_mlflow_model(make, kind):
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.exceptions import MlflowException

    ws = make(kind)
    package(ws)
    files = {file.relative_to(ws.package).as_posix() for file in ws.package.rglob("*") if file.is_file()}
    assert {"MLmodel", "README.md", "pyfunc.py", "input_example.json", "requirements.txt"} <= files
    assert {"artifacts/model.safetensors", "artifacts/config.json"} <= files
    assert not [name for name in files if Path(name).suffix in PICKLES or "__pycache__" in name]
    assert str(ws.root) not in (ws.package / "MLmodel").read_text()
    model = mlflow.pyfunc.load_model(str(ws.package))
    assert model.metadata.signature.inputs is not None
    example = model.input_example
    if kind == "text":
        params = {"tokens": 5, "seed": 1}
        first, again = (model.predict(pd.DataFrame({"prompt": ["the ", "the "]}), params=params) for _ in range(2))
        assert list(first.columns) == ["text"]
        assert first["text"][0] == first["text"][1] == again["text"][0]
    else:
        answer = model.predict(example)
        assert list(answer.columns) == ["label", "probability", "probabilities"]
        assert answer["label"][0] in SPECS[kind]["classes"]
        assert sum(answer["probabilities"][0]) == pytest.approx(1)
    wrong = pd.DataFrame({"something": ["else"]})
    with pytest.raises(MlflowException, match="schema"):
        model.predict(wrong)
    card = (ws.package / "README.md").read_text()
    assert ws.zone("shards").manifest().digest in card
    assert str(recorded_run_id(ws)) in card


def test_a_package_has_the_permissions_that_the_umask_leaves(make):
    """Also its entry, which MLflow copies with those of the installed file."""
    before = os.umask(0o077)
    try:
        ws = make("image")
        package(ws)
    finally:
        os.umask(before)
    assert (ws.package / "pyfunc.py").is_file()
    assert {path.name for path in ws.package.rglob("*") if path.stat().st_mode & 0o077} == set()


def test_a_package_runs_without_the_checkout_and_without_pickles(make, tmp_path):
    ws = make("image")
    package(ws)
    folder = tmp_path / "elsewhere" / "model"
    shutil.copytree(ws.package, folder)
    code = (
        "import sys, mlflow.pyfunc\n"
        "unpickled = []\n"
        "sys.addaudithook(lambda event, args: event == 'pickle.find_class' and unpickled.append(args))\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(model.predict(model.input_example)['label'][0])\n"
        "ours = [m for n, m in sys.modules.items() if n.split('.')[0] in ('pipelines', 'storage', 'flows')]\n"
        "outside = {m.__file__ for m in ours if m.__file__ and not m.__file__.startswith(sys.argv[1])}\n"
        "assert ours and not outside, outside\n"
        "assert not unpickled, unpickled\n"
        "import pickle; pickle.loads(pickle.dumps(len)); assert unpickled, 'the hook sees nothing'"
    )
    command = [sys.executable, "-W", "ignore", "-P", "-c", code, str(folder)]
    env = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}  # as docs/security.md asks of servers
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in IMAGE["classes"]


def test_a_model_of_the_users_own_travels_with_its_package(make, tmp_path, monkeypatch, capsys):
    root = tmp_path / "project"
    (root / "ownmodel").mkdir(parents=True)
    (root / "ownmodel" / "__init__.py").write_text("")
    (root / "ownmodel" / "nets.py").write_text(OWN_MODEL)
    monkeypatch.chdir(root)
    ws = make("image", model={"name": "ownmodel.nets:Tiny", "args": {}})
    package(ws)
    assert (ws.package / "code" / "ownmodel" / "nets.py").read_text() == OWN_MODEL
    promote(ws)
    (root / "a.png").write_bytes(png())
    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    for name in ("ownmodel", "ownmodel.nets"):
        monkeypatch.delitem(sys.modules, name)
    capsys.readouterr()
    predict(None, [Path("../a.png")])
    assert capsys.readouterr().out.startswith("../a.png\t")


def test_the_package_is_logged_to_its_run_once(make):
    ws = make("image")
    first = package(ws)
    client = connect(ws).client
    logged = client.get_logged_model(first["model_id"])
    assert str(logged.status) == "READY"
    assert logged.source_run_id == first["run_id"] == recorded_run_id(ws)
    assert logged.tags["data.shards"] == ws.zone("shards").manifest().digest
    run = client.get_run(first["run_id"])
    assert [output.model_id for output in run.outputs.model_outputs] == [first["model_id"]]
    assert run.data.metrics["test/accuracy"] == 0.9
    assert {metric.key: metric.value for metric in logged.metrics}["test/accuracy"] == 0.9
    assert "test/baseline/majority/accuracy" not in run.data.metrics  # the same for every model: a tag, no chart
    assert logged.tags["test.baseline.majority.accuracy"] == "0.5"
    names = {item.path for item in client.list_logged_model_artifacts(first["model_id"])}
    assert {"MLmodel", "README.md", "input_example.json"} <= names
    half = client.create_logged_model(run.info.experiment_id, "half", first["run_id"])  # as a SIGKILL leaves it
    assert package(ws)["model_id"] == first["model_id"]
    assert first["model_id"] in (ws.package / "MLmodel").read_text()
    left = client.search_logged_models([run.info.experiment_id])
    assert half.model_id not in {model.model_id for model in left}
    write_metrics(ws, accuracy=0.91)
    assert package(ws)["model_id"] != first["model_id"]  # other content, another LoggedModel


def test_without_mlflow_the_folder_is_written_and_promote_logs_it_later(make, monkeypatch, capfd):
    ws = make("image")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    away = Workspace.open(ws.root)
    assert package(away) == {"folder": str(ws.package), "model_id": None, "run_id": None}
    said = capfd.readouterr()
    assert "connection refused" in said.err
    assert "not logged" in said.out
    assert (ws.package / "MLmodel").is_file()
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        promote(away)
    assert not ws.promotion.exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert promote(Workspace.open(ws.root))["aliases"] == {"candidate": 1, "champion": 1}


def test_a_model_that_cannot_answer_leaves_the_old_package(make):
    ws = make("image")
    package(ws)
    before = (ws.package / "MLmodel").read_bytes()
    config = json.loads((ws.model / "config.json").read_text())
    config["model"]["args"] = {"hidden": [3]}
    (ws.model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParamsError, match="does not answer its own input example"):
        package(ws)
    assert (ws.package / "MLmodel").read_bytes() == before
    assert not list(ws.package.parent.glob(".package.*"))


def test_two_runs_take_turns(make, capsys):
    """The second one clears away what it finds half-made: it must not be the first one's."""
    ws = make("image")
    with ThreadPoolExecutor(1) as pool:
        with exclusive(ws.state / "package.lock", ws.package):
            second = pool.submit(package, ws)
            wait_for(lambda: "another run is at work here" in capsys.readouterr().out, "it waits")
            assert not second.done()
        assert second.result(60)["model_id"]


def test_missing_inputs_are_named(make):
    ws = make("image")
    with pytest.raises(FormatError, match="dvc repro package"):
        promote(ws)
    ws.metrics("evaluate").unlink()
    with pytest.raises(FormatError, match="dvc repro evaluate"):
        package(ws)
