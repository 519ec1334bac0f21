"""Duplicates: which file or row is kept, and where what was left out is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import TINY, write_params
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest import data_stage
from pipelines.ingest.duplicates import NAMED, distinct_rows
from pipelines.ingest.readers import Rows
from pipelines.ingest.stage import Summary, journal_of, run
from pipelines.workspace import Workspace

TABLES: dict[str, Any] = {
    **TINY, "ingest": {"sources": ["tables/*.csv"]},
    "curate": {"label": "y", "files_per_object": 1, "split": {"train": 1, "val": 0, "test": 0}},
}  # fmt: skip


def make(folder: Path, *stages: str) -> list[Summary]:
    ws = Workspace.open(folder)
    return [run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in stages]


def listed(folder: Path) -> list[dict[str, Any]]:
    file = folder / "data" / "curated" / "duplicates.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_files_that_are_left_out_are_listed_with_the_one_that_is_kept(recipe: Path) -> None:
    plain = make(recipe, "ingest", "curate")[1]
    assert not (recipe / "data" / "curated" / "duplicates.jsonl").exists()
    copies = {"doc003b": "doc003", "doc017b": "doc017", "zoo": "doc003"}
    for copy, name in copies.items():
        (recipe / "texts" / f"{copy}.txt").write_bytes((recipe / "texts" / f"{name}.txt").read_bytes())
    summary = make(recipe, "ingest", "curate")[1]
    assert sorted(listed(recipe), key=lambda entry: entry["name"]) == [
        {"name": "doc003b.txt", "of": "doc003.txt"},
        {"name": "doc017b.txt", "of": "doc017.txt"},
        {"name": "zoo.txt", "of": "doc003.txt"},
    ]
    assert ", 3 duplicates left out (see duplicates.jsonl);" in str(summary)
    objects = ["path", "split", "rows"]
    assert summary.manifest.table.select(objects) == plain.manifest.table.select(objects)
    assert summary.worked == 0
    for copy in copies:
        (recipe / "texts" / f"{copy}.txt").unlink()
    assert make(recipe, "ingest", "curate")[1].manifest.digest == plain.manifest.digest
    assert not (recipe / "data" / "curated" / "duplicates.jsonl").exists()


def tables(folder: Path, *names: str) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    write_params(folder, TABLES)
    for number, name in enumerate(names):
        rows = [f"{number},{row % 3},a\n" for row in range(5)]
        (folder / "tables" / f"{name}.csv").write_text("a,b,y\n" + "".join(rows))


def test_rows_of_a_table_are_listed_too_and_the_list_is_kept(tmp_path: Path) -> None:
    """By whatever way the files came, and also of those that were not worked again."""
    tables(tmp_path, "one", "three", "two")
    first = make(tmp_path, "ingest", "curate")[1]
    pairs = [(f"{name}.csv:{line}", f"{name}.csv:{line - 3}") for name in ("one", "three", "two") for line in (5, 6)]
    assert [(entry["name"], entry["of"]) for entry in listed(tmp_path)] == pairs
    assert first.duplicates == 6
    again = make(tmp_path, "curate")[0]
    assert (again.worked, again.duplicates) == (0, 6)
    (tmp_path / "tables" / "three.csv").unlink()
    assert make(tmp_path, "ingest", "curate")[1].duplicates == 4
    tables(tmp_path, "one", "three", "two")
    last = make(tmp_path, "ingest", "curate")[1]
    assert (last.worked, last.manifest.digest) == (1, first.manifest.digest)
    assert [(entry["name"], entry["of"]) for entry in listed(tmp_path)] == pairs


def test_the_list_survives_a_crash(tmp_path: Path) -> None:
    tables(tmp_path, "one", "two")
    make(tmp_path, "ingest")
    ws = Workspace.open(tmp_path)
    stage, journal = data_stage("curate", ws), journal_of(ws, "curate")

    class Stops:
        def map(self, work, items):  # type: ignore[no-untyped-def]
            yield work(items[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stage, journal, ws.params.compute, Stops())
    summary = run(stage, journal, ws.params.compute)
    assert (summary.worked, summary.duplicates, len(listed(tmp_path))) == (1, 4, 4)


def test_of_many_rows_the_first_are_named_and_the_rest_is_counted() -> None:
    table = pa.table({"a": np.zeros(1000), "label": ["x"] * 1000})
    rows, entries = distinct_rows(Rows([f"t.csv:{line}" for line in range(2, 1002)], table), "t.csv")
    assert rows.ids == ["t.csv:2"]
    assert entries[:NAMED] == [{"name": f"t.csv:{line}", "of": "t.csv:2"} for line in range(3, 3 + NAMED)]
    assert entries[NAMED:] == [{"name": "t.csv", "more": 999 - NAMED}]


VALUES = st.sampled_from([0.0, -0.0, 1.5, -1.5, 1e300])


@given(st.lists(st.tuples(VALUES, VALUES, st.sampled_from(["", "a", "é"])), max_size=40))
def test_the_first_of_equal_rows_is_kept(cells: list[tuple[float, float, str]]) -> None:
    schema = pa.schema({"a": pa.float64(), "b": pa.float64(), "label": pa.string()})
    table = pa.Table.from_pylist([dict(zip(schema.names, cell, strict=True)) for cell in cells], schema)
    found, entries = distinct_rows(Rows([str(row) for row in range(len(cells))], table), "t")
    first: dict[tuple[float, float, str], int] = {}
    for row, cell in enumerate(cells):
        first.setdefault(cell, row)
    assert found.ids == [str(row) for row in first.values()]
    assert found.table.to_pylist() == [
        dict(zip(("a", "b", "label"), cells[row], strict=True)) for row in first.values()
    ]
    assert entries == [
        {"name": str(row), "of": str(first[cell])} for row, cell in enumerate(cells) if first[cell] != row
    ]
