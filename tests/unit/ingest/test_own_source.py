"""A source of the user's own: one file beside params.yaml; and one more of Shardline's, in its folder."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY, Run, make_project, write_params

from pipelines.ingest import data_stage
from pipelines.ingest.fetch import IngestStage, changed_sources
from pipelines.ingest.sources import members
from pipelines.ingest.stage import journal_of
from pipelines.ingest.stage import run as run_stage
from pipelines.params import Ingest
from pipelines.params.domains import SOURCES
from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.workspace import Workspace
from storage.errors import ParamsError, SourceError
from storage.lake import Zone

PAGE = (REPOSITORY / "docs" / "your-own-data.md").read_text()
(SOURCE,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Tables(Source)" in code)

SHELVES = """
import io
from typing import ClassVar
from pipelines.ingest.sources.member import Source, SourceFile

class Shelves(Source):
    name: ClassVar[str] = "shelves"
    books: int = 2

    def files(self, place):
        return [SourceFile(f"{book}.txt", str(book), 1, "1") for book in range(self.books)]

    def open(self, url):
        return io.BytesIO(url.encode())
"""


def write_orders(folder: Path, *rows: tuple[str, int]) -> None:
    with closing(sqlite3.connect(folder / "shop.db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS orders (item TEXT, count INTEGER)")
        database.executemany("INSERT INTO orders VALUES (?, ?)", rows)


def opened(folder: Path, *sources: Any, **ingest: Any) -> Workspace:
    write_params(folder, {**TINY, "ingest": {"sources": list(sources), **ingest}})
    return Workspace.open(folder)


def ingest(ws: Workspace) -> dict[str, bytes]:
    """Name → content of the raw files."""
    done = run_stage(data_stage("ingest", ws), journal_of(ws, "ingest"), ws.params.compute)
    return {row["name"]: ws.zone("raw").read(row["path"], row["digest"]) for row in done.manifest.records()}


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    """A recipe's folder with a database, and a source that reads it, in a module that no other test has imported."""
    module = f"own_source_{abs(hash(request.node.name))}"
    write_orders(tmp_path, ("tea", 2))
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("CREATE TABLE spam (item TEXT)")
    (tmp_path / f"{module}.py").write_text(SOURCE)
    return tmp_path, {"name": f"{module}:Tables", "args": {"database": "shop.db", "tables": ["orders"]}}


def test_a_table_of_a_database_is_fetched_once_until_it_changes(shop: tuple[Path, dict[str, Any]]) -> None:
    folder, source = shop
    ws = opened(folder, source)
    assert ingest(ws) == {"orders.csv": b"item,count\r\ntea,2\r\n"}
    assert changed_sources(ws) == []
    write_orders(folder, ("jam", 1))
    assert changed_sources(ws) == ["orders.csv"]
    assert ingest(ws) == {"orders.csv": b"item,count\r\ntea,2\r\njam,1\r\n"}


def test_files_and_sources_of_ones_own_stand_in_one_list(shop: tuple[Path, dict[str, Any]]) -> None:
    folder, source = shop
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").write_text("item,count\n")
    assert {*ingest(opened(folder, "in/*.csv", source))} == {"a.csv", "orders.csv"}
    assert {
        *ingest(
            opened(
                folder, "in", {**source, "args": {**source["args"], "tables": ["orders", "spam"]}}, exclude=["spam*"]
            )
        )
    } == {"a.csv", "orders.csv"}
    (folder / "in" / "orders.csv").write_text("item,count\n")
    with pytest.raises(SourceError, match=r"would both be named 'orders.csv'"):
        ingest(opened(folder, "in/*.csv", source))


def test_a_url_is_short_for_the_source_of_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x")

    def items(source: Any) -> list[Any]:
        return IngestStage(Ingest(sources=[source]), tmp_path, tmp_path / "state", Zone(tmp_path / "raw")).plan()

    assert items({"name": "files", "args": {"url": "in/*.csv"}}) == items("in/*.csv")


def test_its_code_is_what_the_files_depend_on(shop: tuple[Path, dict[str, Any]]) -> None:
    folder, source = shop
    ws = opened(folder, source)
    ingest(ws)
    (module,) = folder.glob("own_source_*.py")
    module.write_text(SOURCE + "\n")
    assert changed_sources(ws) == ["orders.csv"]


def test_dvc_sees_its_code(tmp_path: Path, run: Run) -> None:
    make_project(tmp_path, run)
    write_orders(tmp_path, ("tea", 2))
    (tmp_path / "tables.py").write_text(SOURCE)
    ws = opened(tmp_path, {"name": "tables:Tables", "args": {"database": "shop.db", "tables": ["orders"]}})
    assert depend_on_code(ws) == ["ingest depends on tables.py"]
    run("shardline", "ingest", cwd=tmp_path)
    assert [row["name"] for row in ws.zone("raw").manifest().records()] == ["orders.csv"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "fils"}, r"ingest\.sources: no such name. Did you mean 'files'"),
        ({"name": "files", "args": {"urls": "x"}}, r"ingest\.sources\.args\.urls: unknown .*Did you mean 'url'"),
        (
            {"name": "a:B", "arg": {}},
            r"ingest\.sources: a source is a URL, glob or folder, or \{name, args\}; wrong: arg",
        ),
        ({"url": "x"}, r"ingest\.sources: .* is no URL, glob or folder"),
    ],
)
def test_a_wrong_source_is_named_when_parameters_are_read(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        opened(tmp_path, source)


def test_what_its_class_refuses_or_raises_is_told(shop: tuple[Path, dict[str, Any]]) -> None:
    folder, source = shop
    for args, error, message in (
        ({"database": "shop.db"}, ParamsError, r"ingest\.sources\.args\.tables: Field required"),
        (
            {"database": "shop.db", "tables": ["x"]},
            SourceError,
            r"Tables cannot list its files: OperationalError: no such",
        ),
        ({"database": "shop.db", "tables": []}, SourceError, r"Tables has no file. Check its args"),
    ):
        with pytest.raises(error, match=message):
            ingest(opened(folder, {**source, "args": args}))
    with pytest.raises(ParamsError, match=r"ingest.sources='json:JSONDecoder' is no class that derives from .*Source"):
        ingest(opened(folder, {"name": "json:JSONDecoder"}))


def test_a_source_is_a_file_in_the_folder_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*SOURCES.members] == ["files"]
    (tmp_path / "added_shelves.py").write_text(SHELVES)
    monkeypatch.setattr(members, "__path__", [*members.__path__, str(tmp_path)])
    monkeypatch.delitem(SOURCES.__dict__, "members")
    assert ingest(opened(tmp_path, {"name": "shelves", "args": {"books": 1}})) == {"0.txt": b"0"}
    with pytest.raises(ParamsError, match=r"ingest\.sources\.args\.books: .*valid integer"):
        opened(tmp_path, {"name": "shelves", "args": {"books": "1"}})
