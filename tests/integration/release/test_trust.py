"""Weights that were changed are refused, and neither a model's folder nor the registry chooses code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.release_samples import make_workspace, write_shards
from support.released import OWN_MODEL, png, release

from pipelines.evaluation import evaluate
from pipelines.release import package, promote
from pipelines.release.registry import get_version, resolve_model, version_files
from pipelines.serving import predict
from storage.errors import DigestError, ParamsError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


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
