"""A model of one's own whose code has changed since its training: no weights run through other code unseen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.release_samples import make_workspace, place_store, write_metrics, write_model, write_shards
from support.training_samples import make_points, without_mlflow

from pipelines.evaluation import evaluate
from pipelines.release import package, promote
from pipelines.release.eligibility import waits
from pipelines.serving import generate, predict
from pipelines.tracking import connect
from pipelines.training import train
from pipelines.workspace import Workspace
from storage.errors import ParamsError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own
NETS = """
import torch
from layers import act

class Net(torch.nn.Module):
    def __init__(self, *, in_features: int = 1, num_classes: int = 0, vocab_size: int = 0):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size or 1, vocab_size or 1)
        self.head = torch.nn.Linear(in_features, num_classes or 1)

    def forward(self, x):
        if x.dtype == torch.int64:
            return act(self.table(x))
        return act(self.head(x.float().flatten(1) / 255 - 0.5))
"""
TANH = "import torch\n\ndef act(x):\n    return torch.tanh(x)\n"
RELU = TANH.replace("tanh", "relu")
METRIC = """
class Mine:
    value = 0.5
    def update(self, answers, targets): ...
    def compute(self): return self.value
"""
ROWS = "width,height,mean area\n1,2,3\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model of one's own in nets.py and what it needs in layers.py."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    (folder / "layers.py").write_text(TANH)
    (folder / "rows.csv").write_text(ROWS)
    monkeypatch.chdir(folder)
    for name in ("nets", "layers", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def make(root: Path, database: Path, kind: str = "table", **changes) -> Workspace:
    ws = make_workspace(root, kind, **{"model": {"name": "nets:Net", "args": {}}} | changes)
    place_store(ws, database)
    return ws


def release(ws: Workspace, accuracy: float, seed: int = 0) -> dict:
    write_model(ws, seed=seed)
    write_metrics(ws, accuracy=accuracy, mine=accuracy)
    package(ws)
    return promote(ws)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def committed() -> str:
    """The project's code, in git; its commit."""
    Path(".gitignore").write_text("data/\n.shardline/\n.dvc/\nmetrics/\n__pycache__/\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    return git("rev-parse", "HEAD")


@pytest.mark.parametrize("entrypoint", [None, "trainer:train"])
def test_a_trained_model_says_which_code_it_was_trained_with(root, monkeypatch, entrypoint):
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    (root / "trainer.py").write_text("def train(job): job.save_model(job.build_model())\n")
    settings = {"steps": 1, "entrypoint": entrypoint}
    ws = make_points(root, model={"name": "nets:Net"}, train=settings)
    train(ws)
    code = json.loads((ws.model / "config.json").read_text())["code"]
    assert sorted(code) == ["layers.py", "nets.py"], "what the model runs, and not the trainer"
    evaluate(ws)
    (root / "layers.py").write_text(RELU)
    with pytest.raises(ParamsError, match=r"was trained with other code than today's: layers\.py \(changed\)"):
        evaluate(ws)
    train(make_points(root, train=settings))
    assert "code" not in json.loads((ws.model / "config.json").read_text()), "of Shardline's models"


def test_predict_refuses_a_version_whose_code_has_changed(root, database, capsys):
    ws = make(root, database)
    commit = committed()
    release(ws, 0.9)
    capsys.readouterr()
    predict(None, [Path("rows.csv")])
    answer = capsys.readouterr().out
    (root / "layers.py").write_text(RELU)
    (root / "nets.py").write_text(f"import more\n{NETS}")
    (root / "more.py").write_text("")
    with pytest.raises(ParamsError) as refused:
        predict(None, [Path("rows.csv")])
    told = "table_test version 1 was trained with other code than today's: layers.py (changed), more.py (new), nets.py"
    assert str(refused.value).startswith(told)
    assert f"`git checkout {commit[:12]}`" in str(refused.value)
    assert "--changed-code" in str(refused.value)
    for name in ("nets", "layers"):
        del sys.modules[name]
    predict(None, [Path("rows.csv")], changed_code=True)
    said = capsys.readouterr()
    assert told in said.err
    assert said.out.startswith("rows.csv:2\t")
    assert said.out != answer, "or this test shows nothing"
    (root / "more.py").unlink()
    git("checkout", commit, "--", ".")
    for name in ("nets", "layers"):
        del sys.modules[name]
    predict(None, [Path("rows.csv")])
    assert capsys.readouterr().out == answer


def test_generate_refuses_a_version_whose_code_has_changed(root, database, capsys):
    ws = make(root, database, "text", promote={"gate": {"metric": "accuracy"}})
    release(ws, 0.9)
    (root / "layers.py").write_text(RELU)
    with pytest.raises(ParamsError, match=r"text_test version 1 was trained with other code .*layers\.py \(changed\)"):
        generate(None, "the cat", tokens=3)
    generate(None, "the cat", tokens=3, changed_code=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("the cat")


def test_a_champion_is_not_measured_with_other_code_than_its_own(root, database):
    ws = make(root, database)
    release(ws, 0.9, seed=1)
    (root / "layers.py").write_text(RELU)
    result = release(ws, 0.8, seed=2)
    assert result["decision"]["champion"] == {"version": 1, "metrics": "recorded"}, "on the same data nothing is run"
    write_shards(ws, "table", rows=44)
    result = release(ws, 0.99, seed=3)
    assert result["aliases"] == {"candidate": 3, "champion": 1}
    reason = result["decision"]["reason"]
    assert "cannot be measured on the present data (table_test version 1 was trained with other code" in reason
    assert "layers.py (changed)" in reason
    assert "promote.trusted" in reason
    (root / "layers.py").write_text(TANH)
    result = release(ws, 0.99, seed=3)
    assert result["decision"]["champion"] == {"version": 1, "metrics": "re-evaluated"}
    assert result["aliases"] == {"candidate": 4, "champion": 4}


def test_trained_again_after_a_comment_the_champion_can_be_used_again(root, database, capsys):
    """Its weights are the same, and so the gate would keep the version that no code fits any more."""
    ws = make(root, database)
    release(ws, 0.9)
    (root / "layers.py").write_text(f"# why\n{TANH}")
    with pytest.raises(ParamsError, match="version 1 was trained with other code"):
        predict(None, [Path("rows.csv")])
    worse = release(ws, 0.8)
    assert worse["aliases"] == {"candidate": 2, "champion": 1}, "the same weights that answer otherwise"
    write_metrics(ws, accuracy=0.9)
    result = promote(ws)
    assert result["aliases"] == {"candidate": 2, "champion": 2}
    assert (
        "has the weights and the accuracy of the champion, version 1, in today's code" in result["decision"]["reason"]
    )
    predict(None, [Path("rows.csv")])
    assert "table_test version 2" in capsys.readouterr().err
    assert promote(ws) == result


def test_a_metric_of_ones_own_that_has_changed_is_measured_again(root, database):
    (root / "measure.py").write_text(METRIC)
    gate = {"gate": {"metric": "mine"}}
    ws = make(root, database, promote=gate, evaluate={"metrics": [{"name": "measure:Mine", "key": "mine"}]})
    release(ws, 0.9, seed=1)
    assert release(ws, 0.8, seed=2)["decision"]["champion"]["metrics"] == "recorded"
    (root / "measure.py").write_text(METRIC.replace("0.5", "0.6"))
    result = release(ws, 0.7, seed=3)
    assert result["decision"]["champion"] == {"version": 1, "metrics": "re-evaluated"}
    assert result["aliases"] == {"candidate": 3, "champion": 3}, "0.7 against 0.6, not against what was 0.9"


def test_a_version_from_before_runs_and_says_so(root, database, capsys):
    ws = make(root, database)
    config = json.loads((ws.model / "config.json").read_text())
    del config["code"]
    (ws.model / "config.json").write_text(json.dumps(config))
    write_metrics(ws, accuracy=0.9)
    package(ws)
    promote(ws)
    capsys.readouterr()
    predict(None, [Path("rows.csv")])
    said = capsys.readouterr()
    assert said.err.count("table_test version 1 does not say which code of your own it was trained with") == 1
    assert said.out.startswith("rows.csv:2\t")


def test_a_model_is_neither_packaged_nor_registered_in_other_code(root, database):
    ws = make(root, database)
    write_metrics(ws, accuracy=0.9)
    package(ws)
    (root / "layers.py").write_text(RELU)
    with pytest.raises(ParamsError, match=r"layers\.py \(changed\).* or train again: `shardline repro`"):
        package(ws)
    result = promote(ws)
    assert result["version"] is None
    assert "trained with other code than today's, layers.py (changed)" in result["decision"]["reason"]
    assert not waits(ws)
    (root / "layers.py").write_text(TANH)
    assert waits(ws)
    assert promote(ws)["aliases"] == {"candidate": 1, "champion": 1}


@pytest.mark.parametrize("ignored", ["", "layers.py\n"])
def test_own_code_that_git_does_not_know_registers_nothing(root, database, ignored):
    ws = make(root, database)
    committed()
    git("rm", "--quiet", "--cached", "layers.py")
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + ignored)
    git("commit", "--quiet", "--all", "--message", "without it")
    assert git("status", "--short") == ("" if ignored else "?? layers.py")
    (root / "notes.py").write_text("")  # no stage runs it
    result = release(ws, 0.9)
    assert result["version"] is None
    assert "git does not know layers.py, code of your own" in result["decision"]["reason"]
    assert "`git add layers.py`" in result["decision"]["reason"]
    git("add", "--force", "layers.py")
    assert promote(ws)["version"] is None, "what is staged is not committed"
    git("commit", "--quiet", "--message", "known")
    assert waits(ws)
    assert promote(ws)["version"] == 1
    version = connect(ws).client.get_model_version("table_test", "1")
    assert version.tags["git.dirty"] == "false"


def test_two_packages_in_one_process_do_not_share_a_module(root, database, tmp_path, monkeypatch):
    """MLflow leaves modules as they are loaded: the second one's weights would run through the first one's code."""
    import mlflow.pyfunc

    ws = make(root, database)
    write_metrics(ws, accuracy=0.9)
    for name, code in (("tanh", TANH), ("relu", RELU)):
        (root / "layers.py").write_text(code)
        write_model(ws)
        package(ws)
        shutil.copytree(ws.package, tmp_path / name)
        for module in ("nets", "layers"):
            del sys.modules[module]
    monkeypatch.setattr(sys, "path", [*sys.path])
    for _ in range(2):
        mlflow.pyfunc.load_model(str(tmp_path / "tanh"))
    with pytest.raises(ParamsError, match=r"'layers' is loaded from .*tanh.*Load each version in a process of its own"):
        mlflow.pyfunc.load_model(str(tmp_path / "relu"))
