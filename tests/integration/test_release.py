"""Package, promote, predict and generate with a real MLflow."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from PIL import Image
from support.release_samples import (
    IMAGE,
    MODELS,
    SPECS,
    make_workspace,
    mlflow_server,
    place_store,
    write_metrics,
    write_model,
    write_shards,
)
from support.servers import free_port, wait_for

from pipelines.evaluation import evaluate, evaluate_model
from pipelines.models import load_model
from pipelines.release import package, promote
from pipelines.release.eligibility import waits, why_not
from pipelines.release.registry import get_version, resolve_model, version_files
from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.runtime.locks import exclusive
from pipelines.serving import generate, predict
from pipelines.tracking import connect, open_run, recorded_run_id
from pipelines.workspace import Workspace
from storage.errors import DataError, DigestError, FormatError, ParamsError, SourceError, TrackingError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy"}


@pytest.fixture
def make(tmp_path: Path, database: Path):
    """A workspace of a kind, trained in a run and evaluated, in a project of its own with an empty store."""

    def call(kind: str = "image", **changes) -> Workspace:
        ws = make_workspace(tmp_path / "project", kind, **changes)
        place_store(ws, database)
        train(ws)
        write_metrics(ws, accuracy=0.9, loss=0.3, bits_per_byte=4.0, baseline={"majority": {"accuracy": 0.5}})
        return ws

    return call


def train(ws: Workspace, **model) -> str:
    """As the train stage: a run, and data/model that names it."""
    with open_run(ws) as run:
        write_model(ws, run_id=run.id, **model)
    return run.id


def release(ws: Workspace, accuracy: float, **model) -> dict:
    """Train (untrained weights of `seed`), evaluate (made up), package, promote."""
    train(ws, **model)
    write_metrics(ws, accuracy=accuracy)
    package(ws)
    return promote(ws)


def png(level: int = 200, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, level, np.uint8)).save(file, "PNG")
    return file.getvalue()


# -- package ---------------------------------------------------------------------------------------------------------


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


def test_a_flipped_bit_of_the_weights_is_refused_wherever_they_are_read(make, tmp_path, monkeypatch):
    """By evaluate, package, promote, predict, and by the package as MLflow serves it."""
    import mlflow.pyfunc

    ws = make("image")
    evaluation = ws.metrics("evaluate").read_text()
    with flipped(ws.model), pytest.raises(DigestError, match="digest mismatch"):
        evaluate(ws)
    with flipped(ws.model), pytest.raises(DigestError, match="digest mismatch"):
        package(ws)
    assert not ws.package.exists()
    assert ws.metrics("evaluate").read_text() == evaluation
    package(ws)
    with flipped(ws.package / "artifacts"):
        with pytest.raises(DigestError, match=r"digest mismatch.*MLmodel says"):
            promote(ws)
        with pytest.raises(Exception, match="digest mismatch"):
            mlflow.pyfunc.load_model(str(ws.package))
    promote(ws)
    monkeypatch.chdir(ws.root)
    (tmp_path / "a.png").write_bytes(png())
    model = resolve_model(None, ["classification"])
    with version_files(model.store, get_version(model, "champion")) as folder:
        assert (folder / "artifacts" / "model.safetensors.b3").is_file()
        with flipped(folder / "artifacts"), pytest.raises(DigestError, match="digest mismatch"):
            predict(None, [tmp_path / "a.png"])
    predict(None, [tmp_path / "a.png"])


@contextmanager
def flipped(folder: Path) -> Iterator[None]:
    """The last bit of the weights, while the block lasts."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    yield
    file.write_bytes(data)


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


OWN_MODEL = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self, *, in_features: int, num_classes: int):
        super().__init__()
        self.head = torch.nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.head(x.float().flatten(1))
"""


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


def name_evil(config: Path, where: Path) -> None:
    """A config.json whose model would leave a file when it is imported, from wherever it lies: `where`/data/model."""
    code = where / "data" / "model" / "evil.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(f"open({str(where / 'it_ran')!r}, 'w')\n{OWN_MODEL}")
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"model": {"name": "data.model.evil:Tiny", "args": {}}}))


def test_a_models_folder_chooses_no_code(make, monkeypatch):
    ws = make("image")
    monkeypatch.chdir(ws.root)
    name_evil(ws.model / "config.json", ws.root)
    for stage in (evaluate, package):
        with pytest.raises(ParamsError, match=r"data/model/config.json names the model 'data.model.evil:Tiny', which"):
            stage(ws)
    assert not (ws.root / "it_ran").exists()
    assert not ws.package.exists(), "nor is its code copied"


def test_the_registry_chooses_no_code(make, monkeypatch):
    ws = make("image")
    release(ws, 0.90, seed=1)
    stored = ws.project / ".shardline" / "mlflow" / "artifacts"
    (config,) = stored.rglob("artifacts/config.json")
    name_evil(config, ws.root)
    (config.parents[1] / "pyfunc.py").write_text("raise SystemExit('it ran')")
    (ws.root / "a.png").write_bytes(png())
    monkeypatch.chdir(ws.root)
    with pytest.raises(ParamsError, match=r"names the model 'data.model.evil:Tiny', which was not imported"):
        predict(None, [Path("a.png")])
    write_shards(ws, "image", rows=44)  # so that the champion is to be measured again
    result = release(ws, 0.98, seed=2)
    assert result["aliases"] == {"candidate": 2, "champion": 1}
    assert "cannot be measured on the present data" in result["decision"]["reason"]
    assert "which was not imported" in result["decision"]["reason"]
    assert not (ws.root / "it_ran").exists()


def test_an_earlier_model_of_the_recipe_is_measured_where_it_is_trusted(make, tmp_path, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    (root / "earlier.py").write_text(OWN_MODEL)
    monkeypatch.chdir(root)
    ws = make("image", model={"name": "earlier:Tiny", "args": {}})
    release(ws, 0.9, seed=1)
    promote = {"gate": {"metric": "accuracy"}}
    now = make_workspace(root, "image", rows=44)
    assert "names the model 'earlier:Tiny', which was not" in release(now, 0.98, seed=2)["decision"]["reason"]
    trusting = make_workspace(root, "image", rows=44, promote=promote | {"trusted": ["earlier:Tiny"]})
    result = release(trusting, 0.98, seed=2)
    assert result["decision"]["champion"] == {"version": 1, "metrics": "re-evaluated"}
    assert result["aliases"] == {"candidate": 2, "champion": 2}


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


# -- promote ---------------------------------------------------------------------------------------------------------


def test_the_first_model_becomes_champion_once(make, capsys):
    ws = make("image")
    package(ws)
    result = promote(ws)
    assert result["aliases"] == {"candidate": 1, "champion": 1}
    assert result["decision"]["promoted"]
    assert "image_test version 1 is champion" in capsys.readouterr().out
    written = ws.promotion.read_bytes()
    assert json.loads(written) == result
    ws.promotion.unlink()  # as after a SIGKILL between the alias and the file
    assert promote(ws) == result
    assert ws.promotion.read_bytes() == written
    client = connect(ws).client
    assert [version.version for version in client.search_model_versions("name = 'image_test'")] == [1]
    version = client.get_model_version_by_alias("image_test", "champion")
    assert version.run_id == recorded_run_id(ws)
    assert version.run_id in version.description
    assert version.tags["data.shards"] == ws.zone("shards").manifest().digest
    assert json.loads(version.tags["metrics"])["accuracy"] == 0.9
    tags = {"task": "classification", "inputs": "image", "recipe": "image_test"}
    assert client.get_registered_model("image_test").tags == tags


def test_the_champion_moves_only_for_a_better_model(make, capsys):
    ws = make("image")  # min_gain 0.01
    assert release(ws, 0.90, seed=1)["aliases"] == {"candidate": 1, "champion": 1}
    worse = release(ws, 0.905, seed=2)
    assert worse["aliases"] == {"candidate": 2, "champion": 1}
    assert worse["decision"]["champion"] == {"version": 1, "metrics": "recorded"}
    assert "does not beat the champion's 0.9 by at least 0.01" in worse["decision"]["reason"]
    assert "the champion alias does not move" in capsys.readouterr().out
    assert release(ws, 0.91, seed=3)["aliases"] == {"candidate": 3, "champion": 3}
    assert promote(ws)["aliases"] == {"candidate": 3, "champion": 3}


def test_rolling_back_as_the_page_says(make, monkeypatch):
    ws = make()
    release(ws, 0.90, seed=1)
    release(ws, 0.95, seed=2)
    monkeypatch.chdir(ws.project)
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "registry.md").read_text(), re.DOTALL)
    exec(code.replace("tabular", "image_test").replace('["git.commit"]', '.get("git.commit")'))  # no git here
    result = release(ws, 0.92, seed=3)
    assert result["aliases"] == {"candidate": 3, "champion": 3}, "it was to beat version 1, not 2"


def test_a_model_that_comes_back_is_found_again(make):
    ws = make("image")
    release(ws, 0.90, seed=1)
    release(ws, 0.95, seed=2)
    again = release(ws, 0.90, seed=1)
    assert again["version"] == 1
    assert again["aliases"] == {"candidate": 1, "champion": 2}


def test_equal_weights_keep_the_champion_also_on_new_data(make):
    ws = make("image")
    release(ws, 0.90, seed=1)
    write_shards(ws, "image", rows=44)
    result = release(ws, 0.99, seed=1)
    assert result["aliases"] == {"candidate": 2, "champion": 1}
    assert "same weights" in result["decision"]["reason"]


def test_on_other_data_the_champion_is_measured_again(make):
    ws = make("image")
    release(ws, 0.999, seed=1)  # what it got on the old data must not count
    champion, config = load_model(ws.model)
    manifest = write_shards(ws, "image", rows=44)
    measured = evaluate_model(champion, config, ws.zone("shards"), manifest, ws.params)["accuracy"]
    assert measured < 0.95
    result = release(ws, 0.98, seed=2)
    condition = next(c for c in result["decision"]["conditions"] if c["name"] == "champion")
    assert condition["limit"] == measured
    assert result["decision"]["champion"] == {"version": 1, "metrics": "re-evaluated"}
    assert result["aliases"] == {"candidate": 2, "champion": 2}


def test_a_champion_of_other_data_is_not_replaced_unseen(make, monkeypatch):
    ws = make("image")
    release(ws, 0.9, seed=1)
    monkeypatch.setitem(SPECS, "image", IMAGE | {"classes": ["black", "white"]})
    write_shards(ws, "image", rows=40)
    result = release(ws, 0.99, seed=2)
    assert result["aliases"] == {"candidate": 2, "champion": 1}
    assert "cannot be measured on the present data" in result["decision"]["reason"]
    assert "classes" in result["decision"]["reason"]


@pytest.fixture
def git(tmp_path):
    """git in the project."""

    def call(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path / "project", check=True, capture_output=True)

    return call


def versions(ws: Workspace) -> list[int]:
    found = connect(ws).client.search_model_versions("name = 'image_test'")
    return sorted(int(version.version) for version in found)


def test_an_experiment_registers_nothing(make, monkeypatch, capsys):
    ws = make("image")
    release(ws, 0.90, seed=1)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.setenv(variable, "brave-lynx")
        result = release(ws, 0.99, seed=2)
        assert not waits(ws)
        monkeypatch.delenv(variable)
        assert (result["version"], result["aliases"], result["decision"]["promoted"]) == (None, {}, False)
        assert "whose model stays with its run" in result["decision"]["reason"]
        assert json.loads(ws.promotion.read_text()) == result
    assert "promote: image_test is not registered: this is the experiment" in capsys.readouterr().out
    assert versions(ws) == [1]
    assert waits(ws)
    assert promote(ws)["aliases"] == {"candidate": 2, "champion": 2}
    assert not waits(ws)


def test_code_that_is_not_committed_registers_nothing(make, git, capsys):
    ws = make("image")
    (ws.root / ".gitignore").write_text("data/\n.shardline/\n.dvc/\n")
    (ws.root / "nets.py").write_text("")
    (ws.root / "NOTES.md").write_text("")
    git("init", "--quiet")
    assert release(ws, 0.90, seed=1)["aliases"] == {"candidate": 1, "champion": 1}, "there is no commit to differ from"
    other = add_recipe(ws, "table")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    written = ("metrics/evaluate.json", "dvc.lock", ".gitignore")
    for file in (*written, "NOTES.md", "recipes/table_test/params.yaml", "new.py"):
        with (ws.root / file).open("a") as changed:
            changed.write("\n")
    assert release(ws, 0.92, seed=2)["aliases"] == {"candidate": 2, "champion": 2}, "none of it is this recipe's code"
    assert "recipes/table_test/params.yaml differ from the last commit" in promote(other)["decision"]["reason"]
    (ws.root / "nets.py").write_text("changed = True\n")
    capsys.readouterr()
    result = release(ws, 0.99, seed=3)
    assert (result["version"], result["aliases"]) == (None, {})
    assert "promote: image_test is not registered: nets.py differ from the last commit" in capsys.readouterr().out
    assert versions(ws) == [1, 2]
    git("commit", "--quiet", "--message", "changed", "nets.py")
    assert waits(ws)
    assert promote(ws)["aliases"] == {"candidate": 3, "champion": 3}
    git("rm", "--quiet", "nets.py")
    assert promote(ws)["version"] is None, "what is staged is not committed"


def test_own_code_that_a_job_lists_in_dvc_yaml_is_no_change_of_ones_own(make, git):
    ws = make("image")
    (ws.root / ".gitignore").write_text("data/\n.shardline/\n.dvc/\n")
    (ws.root / "nets.py").write_text("import blocks\n")
    (ws.root / "blocks.py").write_text("")
    shutil.copy(REPOSITORY / "dvc.yaml", ws.root)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    model = ws.params.model.model_copy(update={"name": "nets:Net"})
    own = replace(ws, params=ws.params.model_copy(update={"model": model}))
    assert "train depends on blocks.py" in depend_on_code(own)
    assert release(ws, 0.90, seed=1)["aliases"] == {"candidate": 1, "champion": 1}
    pipeline = (ws.root / "dvc.yaml").read_text()
    (ws.root / "dvc.yaml").write_text(pipeline.replace("cmd: shardline train", "cmd: shardline train  # as it is"))
    assert why_not(ws) is None, "a comment"
    (ws.root / "dvc.yaml").write_text(pipeline.replace("cmd: shardline train", "cmd: other train"))
    assert "dvc.yaml differ from the last commit" in why_not(ws)


def test_a_gate_with_a_wrong_name_registers_nothing(make):
    ws = make("image", promote={"gate": {"metric": "acuracy"}})
    package(ws)
    with pytest.raises(ParamsError, match="Did you mean 'accuracy'"):
        promote(ws)
    assert not connect(ws).client.search_registered_models()
    assert not ws.promotion.exists()


# -- use -------------------------------------------------------------------------------------------------------------


def add_recipe(ws: Workspace, kind: str) -> Workspace:
    """Another recipe of the same project, released."""
    folder = ws.project / "recipes" / f"{kind}_test"
    folder.mkdir(parents=True)
    values = yaml.safe_load((ws.root / "params.yaml").read_text())
    values |= {"recipe": f"{kind}_test", "model": MODELS[kind], "promote": {"gate": {"metric": "accuracy"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    other = Workspace.open(folder)
    write_shards(other, kind, 20)
    release(other, 0.8)
    return other


def test_images_and_tables_are_answered_line_by_line(make, monkeypatch, capsys):
    ws = make("image")
    release(ws, 0.9, bias=50.0)  # sure to say "light"
    add_recipe(ws, "table")
    monkeypatch.chdir(ws.root)
    (ws.root / "a.png").write_bytes(png())
    (ws.root / "b.png").write_bytes(png(size=(20, 30)))
    (ws.root / "rows.csv").write_text("width,height,mean area\n1,2,3\n4,5,6\n")
    capsys.readouterr()
    predict(None, [Path("a.png"), Path("b.png")])
    said = capsys.readouterr()
    assert said.out == "a.png\tlight\t1.0000\nb.png\tlight\t1.0000\n"
    assert said.err == "image_test version 1\n"
    predict("table_test", [Path("rows.csv")], alias="1")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["rows.csv:2", "rows.csv:3"]
    assert all(line[1] in ("0", "1") and 0.5 <= float(line[2]) <= 1 for line in lines)
    (ws.root / "rows.csv").write_text("id,width,height,mean area,note\n7,1,2,3,x\n")
    predict("table_test", [Path("rows.csv")])
    said = capsys.readouterr()
    assert "rows.csv: columns that the model does not take: id, note\n" in said.err
    assert said.out.split("\t")[1] == lines[0][1]


def test_predictions_are_json_for_programs(make, monkeypatch):
    from typer.testing import CliRunner

    from pipelines.cli.app import app

    ws = make("image")
    release(ws, 0.9, bias=50.0)
    monkeypatch.chdir(ws.root)
    for name in ("a.png", "b\t.png"):
        (ws.root / name).write_bytes(png())
    done = CliRunner().invoke(app, ["predict", "--json", "a.png", "b\t.png"])
    answered = json.loads(done.stdout)
    assert (answered["model"], answered["version"]) == ("image_test", 1)
    assert [row["name"] for row in answered["predictions"]] == ["a.png", "b\t.png"]
    assert {row["label"] for row in answered["predictions"]} == {"light"}
    assert all(row["probability"] == pytest.approx(1) for row in answered["predictions"])


def test_text_is_written_and_repeats_by_seed(make, monkeypatch, capsys):
    ws = make("text", promote={"gate": {"metric": "accuracy"}})
    release(ws, 0.9)
    monkeypatch.chdir(ws.root)
    capsys.readouterr()

    def write(seed: int) -> str:
        generate(None, "the cat", tokens=30, temperature=1.0, top_k=None, seed=seed)
        return capsys.readouterr().out

    first = write(3)
    assert first.startswith("the cat")
    assert len(first) > 10
    assert write(3) == first
    assert write(4) != first


def test_which_model_a_command_means(make, monkeypatch):
    ws = make("image")
    monkeypatch.chdir(ws.root)
    everything, text = ("classification", "regression"), ("language",)
    with pytest.raises(ParamsError, match=r"No registered model for language .* There is none"):
        resolve_model(None, text)
    package(ws)
    with pytest.raises(ParamsError, match=r"No registered model 'image_test'.*run `shardline promote`"):
        resolve_model("python_lm", everything)  # the name of the project's own recipe
    promote(ws)
    table, language = add_recipe(ws, "table"), add_recipe(ws, "text")
    assert resolve_model(None, everything).name == "image_test"  # the current folder's
    assert resolve_model("table_test", everything).name == "table_test"
    assert resolve_model(None, text).name == "text_test"  # the only one that fits
    assert resolve_model(None, everything, inputs="table").name == "table_test"  # the only one for such files
    monkeypatch.chdir(language.root)
    assert resolve_model(None, everything, inputs="image").name == "image_test"
    assert resolve_model(None, everything).name == "table_test"  # the most recent one that fits
    monkeypatch.chdir(table.root)
    assert resolve_model(None, everything).name == "table_test"
    with pytest.raises(ParamsError, match=r"'table_test' is for classification.*text_test \(language\)"):
        resolve_model("table_test", text)
    with pytest.raises(ParamsError, match="Did you mean 'table_test'"):
        resolve_model("tabel_test", text)


def test_clear_errors(make, monkeypatch, tmp_path):
    ws = make("image")
    monkeypatch.chdir(ws.root)
    (ws.root / "broken.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"missing\.png: no such file"):
        predict(None, [Path("missing.png")])
    with pytest.raises(SourceError, match=r"data: is a folder"):
        predict(None, [Path("data")])
    release(ws, 0.9)
    with pytest.raises(DataError, match=r"broken\.png: cannot be decoded"):
        predict(None, [Path("broken.png")])
    with pytest.raises(ParamsError, match=r"no version 'champio'. Aliases: candidate \(version 1\), champion"):
        predict(None, [Path("broken.png")], alias="champio")
    with pytest.raises(ParamsError, match=r"no version '7'"):
        predict(None, [Path("broken.png")], alias="7")
    with pytest.raises(ParamsError, match=r"No registered model for language.*image_test \(classification\)"):
        generate(None, "x")


@pytest.mark.parametrize("name", ["it's", "a b", "50% #1", "é 日本", 'a"b;c'])
def test_any_folder_will_do(tmp_path, database, monkeypatch, capsys, name):
    """Its name passes through SQLite's URL, MLflow's URIs of artifacts and its search filters."""
    ws = make_workspace(tmp_path / name, "text", promote={"gate": {"metric": "accuracy"}})
    place_store(ws, database)
    monkeypatch.chdir(ws.root)
    assert release(ws, 0.9, seed=1)["aliases"] == {"candidate": 1, "champion": 1}
    assert promote(ws)["version"] == 1, "it is found again"
    write_shards(ws, "text", rows=44)  # so that the champion is fetched and measured again
    decision = release(ws, 0.95, seed=2)["decision"]
    assert "cannot be measured" not in decision["reason"]
    capsys.readouterr()
    generate(None, "the cat", tokens=3)
    assert capsys.readouterr().out.startswith("the cat")
    store = [file for file in tmp_path.rglob("*.db") if file.name == "mlflow.db"]
    assert store == [ws.project / ".shardline" / "mlflow" / "mlflow.db"], "and nowhere else"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_no_sqlite_url_can_name_is_told(tmp_path):
    ws = make_workspace(tmp_path / "q?x=1", "image")
    write_metrics(ws, accuracy=0.9)
    assert package(ws)["run_id"] is None
    with pytest.raises(
        TrackingError, match=r"cannot lie in .*q\?x=1: .*Rename that folder, or set MLFLOW_TRACKING_URI"
    ):
        promote(ws)
    assert not [*tmp_path.rglob("*.db")]
    assert [path.name for path in tmp_path.iterdir()] == ["q?x=1"]


def test_no_store_yet(tmp_path, monkeypatch):
    ws = make_workspace(tmp_path, "image")
    monkeypatch.chdir(ws.root)
    (ws.root / "a.png").write_bytes(png())
    with pytest.raises(ParamsError, match=r"does not exist yet\. Run `make repro RECIPE=image_test` first"):
        predict(None, [Path("a.png")])
    assert not ws.state.exists()


@pytest.mark.long
def test_the_same_through_a_server(make, tmp_path, database, monkeypatch, capsys):
    ws, port = make("image"), free_port()
    shutil.copy(database, tmp_path / "server.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.chdir(ws.root)
    remote = Workspace.open(ws.root)
    with mlflow_server(tmp_path / "server", tmp_path / "server.db", port):
        result = release(remote, 0.9, bias=50.0)
        assert result["aliases"] == {"candidate": 1, "champion": 1}
        assert promote(remote) == result
        (ws.root / "a.png").write_bytes(png())
        capsys.readouterr()
        predict(None, [Path("a.png")])
        assert capsys.readouterr().out == "a.png\tlight\t1.0000\n"
        client = connect(remote).client
        version = client.get_model_version_by_alias("image_test", "champion")
        assert "](#/experiments/" in version.description  # by whatever address and port the reader came
        assert version.source.startswith("models:/m-")
