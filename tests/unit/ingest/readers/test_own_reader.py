"""A reader of the user's own: one file beside params.yaml, and nothing else."""

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from conftest import REPOSITORY, TINY, Run, make_project, write_params

from pipelines.ingest import data_stage
from pipelines.ingest.curated import read_whole
from pipelines.ingest.stage import Summary, journal_of
from pipelines.ingest.stage import run as run_stage
from pipelines.params import Section, describe
from pipelines.params.data import READERS
from pipelines.params.schema.registry import Named, Registry
from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError

PAGE = (REPOSITORY / "docs" / "your-own-data.md").read_text()
(READER,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "FixedWidth" in code)
LINES = "".join(f"{row:5d}{row % 7 / 4:6.2f} {'uv'[row % 2]}\n" for row in range(40)) + "    x  1.00 u\n    0  0.00 u\n"


def opened(folder: Path, reader: Any) -> Workspace:
    write_params(folder, {**TINY, "ingest": {"sources": ["in"]}, "curate": {"reader": reader, "max_quarantined": 1}})
    return Workspace.open(folder)


def curated(ws: Workspace) -> Summary:
    for name in ("ingest", "curate"):
        done = run_stage(data_stage(name, ws), journal_of(ws, name), ws.params.compute)
    return done


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A folder with tables of fixed widths, and a reader of them in a module whose name no other test has imported."""
    module = f"own_reader_{abs(hash(request.node.name))}"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.dat").write_text(LINES)
    (tmp_path / f"{module}.py").write_text(READER)
    return tmp_path, module


def test_an_own_reader_curates(recipe: tuple[Path, str]) -> None:
    folder, module = recipe
    ws = opened(folder, {"name": f"{module}:FixedWidth", "args": {"widths": [5, 6, 2]}})
    done = curated(ws)
    counts = done.manifest.header["counts"]
    assert (counts["quarantined"], counts["duplicates"], sum(counts.values())) == (1, 1, 42)
    assert done.manifest.header["kind"] == "table"
    rows = [row for part in done.manifest.records() for row in read_whole(ws.zone("curated"), part).to_pylist()]
    assert {(row["f0"], row["f1"], row["label"]) for row in rows} == {
        (float(row), round(row % 7 / 4, 2), "uv"[row % 2]) for row in range(40)
    }
    (entry,) = map(json.loads, (folder / "data/curated/quarantine.jsonl").read_text().splitlines())
    assert (entry["name"], entry["reason"]) == ("t.dat:41", "could not convert string to float: 'x'")
    assert json.loads((folder / "data/curated/duplicates.jsonl").read_text())["name"] == "t.dat:42"


def test_its_code_and_its_parameters_are_what_the_objects_depend_on(recipe: tuple[Path, str]) -> None:
    folder, module = recipe

    def keys(widths: list[int]) -> list[str]:
        ws = opened(folder, {"name": f"{module}:FixedWidth", "args": {"widths": widths}})
        run_stage(data_stage("ingest", ws), journal_of(ws, "ingest"), ws.params.compute)
        return [item.key for item in data_stage("curate", ws).plan()]

    first = keys([5, 6, 2])
    assert keys([5, 6, 2]) == first
    assert keys([5, 5, 3]) != first
    (folder / f"{module}.py").write_text(READER + "\n")
    assert keys([5, 6, 2]) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows.append({'f': 1})", "a piece without the column 'label', which table data has"),
        ("rows += [{'f': 1, 'label': 'u'}] * 2", "a piece with 10 names for 20 rows"),
        (
            "rows.append({'f': 1 if number < 11 else 'one', 'label': 'u'})",
            r"different columns: f \(int64\), .*f \(string\)",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_named(recipe: tuple[Path, str], change: str, message: str) -> None:
    folder, module = recipe
    code = READER.replace("10_000", "10").replace('rows.append(self.row(line.decode().rstrip("\\n")))', change)
    (folder / f"{module}.py").write_text(code)
    if "20 rows" in message:
        (folder / f"{module}.py").write_text(code.replace("len(rows) == 10", "len(rows) == 20"))
    ws = opened(folder, {"name": f"{module}:FixedWidth", "args": {"widths": [5, 6, 2]}})
    with pytest.raises(DataError, match=rf"curate\.reader=.*FixedWidth'.*t\.dat: .*{message}"):
        curated(ws)


def test_dvc_sees_its_code(tmp_path: Path, run: Run) -> None:
    make_project(tmp_path, run)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.dat").write_text(LINES)
    (tmp_path / "fixed.py").write_text(READER)
    ws = opened(tmp_path, {"name": "fixed:FixedWidth", "args": {"widths": [5, 6, 2]}})
    assert depend_on_code(ws) == ["curate depends on fixed.py"]
    for stage in ("ingest", "curate"):
        done = run("shardline", stage, cwd=tmp_path)
    assert "1 quarantined" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"widths": [1], "wdths": 2}, r"reader\.args\.wdths: unknown parameter of FixedWidth. Did you mean 'widths'"),
        ({"widths": "five"}, r"curate\.reader\.args\.widths: .*valid list \(given: 'five'\)"),
        ({}, r"curate\.reader\.args\.widths: Field required"),
    ],
)  # fmt: skip
def test_its_parameters_are_checked_before_anything_is_read(
    recipe: tuple[Path, str], args: dict[str, Any], message: str
) -> None:
    folder, module = recipe
    ws = opened(folder, {"name": f"{module}:FixedWidth", "args": args})
    run_stage(data_stage("ingest", ws), journal_of(ws, "ingest"), ws.params.compute)
    with pytest.raises(ParamsError, match=message):
        data_stage("curate", ws).plan()


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("csw", r"curate\.reader: no such name. Did you mean 'csv'\?.*package\.module:Class"),
        ({"name": "csv", "args": {"delimiter": ";"}}, r"curate\.reader\.args\.delimiter: unknown parameter of Csv"),
        ({"name": "auto"}, r"curate\.reader: no such name"),
    ],
)
def test_a_wrong_reader_is_named_when_parameters_are_read(tmp_path: Path, reader: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        opened(tmp_path, reader)


def test_code_below_data_is_not_imported_and_what_is_no_reader_is_refused(recipe: tuple[Path, str]) -> None:
    folder, _ = recipe
    ws = opened(folder, "data.evil:FixedWidth")
    run_stage(data_stage("ingest", ws), journal_of(ws, "ingest"), ws.params.compute)
    (folder / "data" / "evil.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ParamsError, match=r"Nothing is imported from there"):
        data_stage("curate", ws).plan()
    with pytest.raises(ParamsError, match=r"'json:JSONDecoder' is no class that derives from .*Reader"):
        data_stage("curate", opened(folder, "json:JSONDecoder")).plan()


def test_a_member_is_a_file_in_the_family_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tmp_path / "colours_of_a_test"
    family.mkdir()
    (family / "__init__.py").write_text("")
    (family / "reds.py").write_text(dedent('''
        from typing import ClassVar
        from pipelines.params import Section

        class Red(Section):
            name: ClassVar[str] = "red"
            shade: int = 3
            """How dark."""
    '''))  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    colours = Registry("paint.colour", "colours_of_a_test", ("none",))
    assert list(colours.members) == ["red"]
    assert colours.make(Named(name="red", args={"shade": 5}), object, ()).shade == 5
    for wrong, message in (
        ("rad", "Did you mean 'red'"),
        (Named(name="red", args={"shade": "x"}), r"paint\.colour\.args\.shade"),
    ):
        with pytest.raises(ValueError, match=message):
            colours.check(wrong)  # type: ignore[arg-type]


def test_readers_and_their_own_parameters_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Red(Section):
        shade: int = 3
        """How dark."""

    monkeypatch.setitem(READERS.members, "red", Red)
    rows = {row[0]: row for row in describe()}
    names = "auto | csv | image_folder | jsonl | parquet | text | red | package.module:Class"
    assert rows["curate.reader"][1] == names
    assert rows["curate.reader.args.shade (red)"][1:] == ("int", "3", "How dark.")
