"""Predict and generate with a real MLflow, in any folder, without a store and through a server."""

import json
import shutil
from pathlib import Path

import pytest
from support.release_samples import make_workspace, mlflow_server, place_store, write_metrics, write_shards
from support.released import add_recipe, png, release
from support.servers import free_port

from pipelines.release import package, promote
from pipelines.release.registry import resolve_model
from pipelines.serving import generate, predict
from pipelines.tracking import connect
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError, SourceError, TrackingError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


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
