"""What registers nothing: experiments, code that isn't committed, a gate with a wrong name."""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import REPOSITORY
from support.released import add_recipe, release, versions

from pipelines.release import package, promote
from pipelines.release.eligibility import waits, why_not
from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.tracking import connect
from storage.errors import ParamsError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


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
