"""The champion moves only for a better model, measured on the present data."""

import json
import re

import pytest
from conftest import REPOSITORY
from support.release_samples import IMAGE, SPECS, write_shards
from support.released import release

from pipelines.evaluation import evaluate_model
from pipelines.models import load_model
from pipelines.release import package, promote
from pipelines.tracking import connect, recorded_run_id

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


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
