"""What a person gets wrong is told before the first stage, and before a server starts."""

import socket
from pathlib import Path

import pytest
import yaml
from conftest import TINY, write_params
from ruamel.yaml import YAML
from ruamel.yaml.scanner import ScannerError

from pipelines.inspect import show_params, show_recipes
from pipelines.preflight import check
from pipelines.repro import open_recipe
from pipelines.tracking.recorded import where_is_the_run
from pipelines.tracking.ui import open_ui
from pipelines.workspace import Workspace
from storage.errors import ParamsError


def opened(folder: Path, **sections: object) -> Workspace:
    write_params(folder, {**TINY, **sections})
    return Workspace.open(folder)


@pytest.mark.parametrize(
    "lake", ["{url: s3://bucket/x}", "{zones: {shards: s3://bucket/x}}", "\n  zones: {raw: memory://x}"]
)
def test_a_colon_that_dvc_cannot_read(tmp_path: Path, lake: str) -> None:
    text = yaml.safe_dump(TINY).replace("lake: {}", f"lake: {lake}")
    (tmp_path / "params.yaml").write_text(text)
    ws = Workspace.open(tmp_path)  # YAML 1.2 knows what is meant
    with pytest.raises(ScannerError, match=r"found unexpected ':'"):
        YAML(typ="safe").load(text)  # as DVC reads it
    with pytest.raises(ParamsError, match=r"params.yaml, line \d+: DVC cannot read (s3|memory)://.* line of its own"):
        check(ws)


@pytest.mark.parametrize("lake", ["{url: 's3://bucket/x'}", "\n  url: s3://bucket/x", "{zones: {raw: /a}}"])
def test_colons_that_dvc_can_read(tmp_path: Path, lake: str) -> None:
    text = yaml.safe_dump(TINY).replace("lake: {}", f"lake: {lake}")
    (tmp_path / "params.yaml").write_text(text)
    YAML(typ="safe").load(text)
    check(Workspace.open(tmp_path))


def test_own_code_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"model.name='my_modle:Net': no module 'my_modle' in .*my_modle.py beside"):
        check(opened(tmp_path, model={"name": "my_modle:Net"}))
    with pytest.raises(ParamsError, match=r"evaluate.metrics='my_modle:F': no module"):
        check(opened(tmp_path, evaluate={"metrics": ["MulticlassAUROC", {"name": "my_modle:F"}]}))
    (tmp_path / "my_modle.py").write_text("raise SystemError('it was imported')")
    check(opened(tmp_path, model={"name": "my_modle:Net"}))
    check(opened(tmp_path, model={"name": "torchmetrics.classification:Net"}))  # an installed one


def test_a_project_without_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"is no DVC project. Change to the folder"):
        open_recipe(None)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ParamsError, match=r"has no dvc.yaml.*Copy it from"):
        open_recipe(None)
    with pytest.raises(ParamsError, match=r"No recipe 'python_ln': .* Did you mean 'python_lm'\?"):
        open_recipe("python_ln")


def test_looking_where_no_project_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"No recipes: .*Change to the folder"):
        show_recipes()
    with pytest.raises(ParamsError, match=r"No runs: .*Change to the folder"):
        open_ui("127.0.0.1", 5000)
    assert not [*tmp_path.iterdir()]


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ParamsError, match=rf"port {port}: Address already in use.*--port"):
            open_ui("127.0.0.1", port)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lr", r"'lr'. Did you mean train.lr\?"),
        ("train.lrr", r"Did you mean 'train.lr'\?"),
        ("nonsense", r"'nonsense'. Known here: recipe, seed, lake, ingest, .{,99}, cache\.$"),
    ],
)
def test_parameters_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        show_params(name)


def test_the_summary_says_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links lead only to runs that exist: tests/integration/test_tracking.py has one that does."""
    ws = opened(tmp_path)
    assert where_is_the_run(ws) == "not tracked"
    ws.model.mkdir(parents=True)
    (ws.model / "run.json").write_text('{"run_id": null}')  # MLflow was away
    assert where_is_the_run(ws) == "not tracked"
    (ws.model / "run.json").write_text('{"run_id": "r1"}')
    assert where_is_the_run(ws).startswith(f"r1, which is not in {ws.tracking_uri}: it was made elsewhere")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:1/")
    assert where_is_the_run(Workspace.open(tmp_path)) == (
        "r1; http://127.0.0.1:1/ does not answer, so it cannot be looked up"
    )
