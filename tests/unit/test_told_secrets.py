"""Each place from which text reaches people or files tells no password, whatever it was given."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY, write_params

from pipelines.caching.tiers import describe_hot
from pipelines.console.progress import say
from pipelines.machine.places import _asked, reached
from pipelines.params.data import Ingest
from pipelines.tracking.pages.descriptions import table
from pipelines.tracking.pages.links import page
from pipelines.tracking.run import Run
from pipelines.tracking.store import cause, warn
from pipelines.training.launchers.reports import Report, report_file
from pipelines.workspace import Workspace
from storage.cache import HotCache
from storage.errors import LakeError
from storage.lake import Zone
from storage.objects.clients import open_client

SECRET = "S3cret"
TOLD = [
    (f"redis://:{SECRET}@host refused", "redis://:***@host refused"),
    (f"simplecache::https://{SECRET}@host/x?sig={SECRET} gave 500", "simplecache::https://***@host/x?sig=*** gave 500"),
    (f"GET http://host: Authorization: Bearer {SECRET}", "GET http://host: Authorization: Bearer ***"),
]
EACH = pytest.mark.parametrize(("text", "told"), TOLD, ids=["login", "chained", "token"])


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A recipe whose cache and tracking server have passwords, and whose server is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:1/")
    write_params(tmp_path, {**TINY, "cache": {"hot": {"url": f"redis://:{SECRET}@127.0.0.1:1"}}})
    return Workspace.open(tmp_path)


@EACH
@pytest.mark.parametrize("tell", [say, warn], ids=["said", "warned"])
def test_no_line_that_is_printed(
    tell: Callable[[str], None], text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(text)
    out, err = capsys.readouterr()
    assert out + err == f"{told}\n"


@EACH
def test_no_rank_s_report(text: str, told: str, tmp_path: Path) -> None:
    """Whose traceback is printed and kept in the job's folder."""
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        report = Report.of(0, error)
    assert report.message == told
    assert report.lines[-1] == f"RuntimeError: {told}"
    report.save(tmp_path)
    assert SECRET not in report_file(tmp_path, 0).read_text()


@EACH
def test_no_cause_of_mlflow_s_and_no_description(text: str, told: str) -> None:
    assert cause(RuntimeError(text)) == f"RuntimeError: {told}"
    assert cause(FileNotFoundError(2, "No such file or directory", f"/{text}")) == f"no such file: /{told}"
    assert f"| from | {told} |" in table({"from": text})


@EACH
def test_no_answer_of_the_doctor_s_places(text: str, told: str) -> None:
    def look() -> None:
        raise ConnectionError(text)

    assert _asked(look) == {"error": told}


def test_no_place_of_a_recipe(ws: Workspace) -> None:
    assert SECRET not in json.dumps(reached(ws))
    assert describe_hot(ws.params.cache) == "redis://:***@127.0.0.1:1"
    assert str(page(ws, "models")) == "http://127.0.0.1:1/#/models"
    assert Ingest(sources=[f"https://{SECRET}@h/x"]).listed == ["https://***@h/x"]


def test_no_file_beside_a_model(ws: Workspace) -> None:
    """run.json, which is pushed with the model."""
    assert Run("tiny", ws.tracking_uri, "r1").reference()["tracking_uri"] == "http://127.0.0.1:1/"


def test_no_zone_and_no_cache(tmp_path: Path) -> None:
    zone = replace(Zone(tmp_path), url=f"simplecache::s3://key:{SECRET}@bucket/x")
    assert zone.describe("objects/a") == "simplecache::s3://key:***@bucket/x/objects/a"
    assert SECRET not in repr(HotCache(f"redis://:{SECRET}@host", 1 << 20))
    with pytest.raises(LakeError, match=r"nosuch://key:\*\*\*@bucket"):
        open_client(f"nosuch://key:{SECRET}@bucket", {}, 1.0)
