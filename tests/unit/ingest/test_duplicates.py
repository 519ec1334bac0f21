"""Duplicates: which sample is kept, over the whole data set, and where what was left out is written."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import TINY, write_params
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.ingest import curated, data_stage
from pipelines.ingest.duplicates import duplicates
from pipelines.ingest.duplicates.content import to_arrow
from pipelines.ingest.duplicates.duplicates import NAMED, kept_rows, pack
from pipelines.ingest.stage import Summary, journal_of, run
from pipelines.workspace import Workspace
from storage.errors import DigestError, FormatError
from storage.manifest import Manifest
from storage.shards import Shard

TABLES: dict[str, Any] = {
    **TINY, "ingest": {"sources": ["tables/*.csv"]},
    "curate": {"label": "y", "features": ["a", "b"], "files_per_object": 1, "split": {"train": 1, "val": 0, "test": 0}},
}  # fmt: skip


def make(folder: Path, *stages: str) -> list[Summary]:
    ws = Workspace.open(folder)
    return [run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in stages]


def listed(folder: Path) -> list[dict[str, Any]]:
    file = folder / "data" / "curated" / "duplicates.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def kept(folder: Path) -> list[str]:
    """The samples of the shards."""
    zone = Workspace.open(folder).zone("shards")
    paths = (zone.local_path(path) for path in zone.manifest().table["path"].to_pylist())
    return sorted(name for path in paths for name in Shard.open(path).ids.to_pylist())


def write(folder: Path, **tables: list[str]) -> None:
    """CSV files of lines id,a,b,y."""
    (folder / "tables").mkdir(exist_ok=True)
    write_params(folder, TABLES)
    for name, lines in tables.items():
        (folder / "tables" / f"{name}.csv").write_text("".join(f"{line}\n" for line in ["id,a,b,y", *lines]))


def test_files_that_are_left_out_are_listed_with_the_one_that_is_kept(recipe: Path) -> None:
    plain = make(recipe, "ingest", "curate", "shard")
    assert not (recipe / "data" / "curated" / "duplicates.jsonl").exists()
    copies = {"doc003b": "doc003", "doc017b": "doc017", "zoo": "doc003"}
    for copy, name in copies.items():
        (recipe / "texts" / f"{copy}.txt").write_bytes((recipe / "texts" / f"{name}.txt").read_bytes())
    summary = make(recipe, "ingest", "curate", "shard")[1]
    assert sorted(listed(recipe), key=lambda entry: entry["name"]) == [
        {"name": "doc003b.txt", "of": "doc003.txt"},
        {"name": "doc017b.txt", "of": "doc017.txt"},
        {"name": "zoo.txt", "of": "doc003.txt"},
    ]
    assert ", 3 duplicates left out (see duplicates.jsonl);" in str(summary)
    assert kept(recipe) == [f"doc{number:03d}.txt" for number in range(24)]
    for copy in copies:
        (recipe / "texts" / f"{copy}.txt").unlink()
    again = make(recipe, "ingest", "curate", "shard")
    assert [s.manifest.digest for s in again] == [s.manifest.digest for s in plain]
    assert not (recipe / "data" / "curated" / "duplicates.jsonl").exists()


def test_a_row_is_a_duplicate_where_all_that_its_file_holds_of_it_is_equal(tmp_path: Path) -> None:
    """Also what the model doesn't see: else the shares of classes would change. In whatever file it stands."""
    write(tmp_path, one=["1,5,6,x", "2,5,6,x", "3,5,6,z"], two=["4,5,6,x", "1,5,6,x", "1,5,6,z"], zoo=["3,5,6,z"])
    summary = make(tmp_path, "ingest", "curate", "shard")[1]
    assert listed(tmp_path) == [
        {"name": "two.csv:3", "of": "one.csv:2"},
        {"name": "zoo.csv:2", "of": "one.csv:4"},
    ]
    assert kept(tmp_path) == ["one.csv:2", "one.csv:3", "one.csv:4", "two.csv:2", "two.csv:4"]
    assert summary.manifest.header["counts"] == {"train": 5, "val": 0, "test": 0, "quarantined": 0, "duplicates": 2}
    assert summary.manifest.table["rows"].to_pylist() == [3, 2, 0]


def test_what_became_of_each_row_adds_up(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x", "1,5,6,x", "2,?,6,x", "2,?,6,x"], two=["1,5,6,x", "3,5,6"])
    summary = make(tmp_path, "ingest", "curate")[1]
    assert summary.manifest.header["counts"] == {"train": 1, "val": 0, "test": 0, "quarantined": 3, "duplicates": 2}
    assert (summary.quarantined, summary.duplicates) == (3, 2)


def test_equal_lines_below_other_headers_are_no_duplicates(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x"], two=[])
    (tmp_path / "tables" / "two.csv").write_text("id,b,a,y\n1,5,6,x\n")
    write_params(tmp_path, {**TABLES, "curate": {**TABLES["curate"], "features": ["a", "b"]}})
    assert make(tmp_path, "ingest", "curate")[1].duplicates == 0


def test_equal_rows_of_other_columns_beside_the_features_are_no_duplicates(tmp_path: Path) -> None:
    """What the model doesn't see tells rows apart, too: 2 pounds and 3 days are not 3 pounds and 2 days."""
    write(tmp_path, one=["1,5,6,x"], two=[], three=["1,5,6,x"])
    (tmp_path / "tables" / "two.csv").write_text("b,a,id,y\n1,5,6,x\n")
    write_params(tmp_path, {**TABLES, "curate": {**TABLES["curate"], "features": ["a"]}})
    make(tmp_path, "ingest", "curate", "shard")
    assert listed(tmp_path) == [{"name": "three.csv:2", "of": "one.csv:2"}]
    assert kept(tmp_path) == ["one.csv:2", "two.csv:2"]


def test_equal_parquet_rows_of_other_columns_beside_the_features_are_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    sources = {"sources": ["tables/*.parquet"]}
    write_params(tmp_path, {**TABLES, "ingest": sources, "curate": {**TABLES["curate"], "features": ["a"]}})
    for name, columns in {"one": "abc", "three": "abc", "two": "acb"}.items():
        table = pa.table({**{column: [1.0, 2.0] for column in columns}, "y": ["x", "z"]})
        pyarrow.parquet.write_table(table, tmp_path / "tables" / f"{name}.parquet")
    make(tmp_path, "ingest", "curate", "shard")
    assert kept(tmp_path) == [f"{name}.parquet:{row}" for name in ("one", "two") for row in (1, 2)]


def test_what_a_new_file_makes_a_duplicate_is_left_out_without_reading_its_file_again(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x"], two=["2,7,8,x", "3,7,9,x"])
    first = make(tmp_path, "ingest", "curate", "shard")
    write(tmp_path, a=["3,7,9,x"])
    curate, shard = make(tmp_path, "ingest", "curate", "shard")[1:]
    assert (curate.worked, curate.duplicates) == (1, 1)
    assert listed(tmp_path) == [{"name": "two.csv:3", "of": "a.csv:2"}]
    assert kept(tmp_path) == ["a.csv:2", "one.csv:2", "two.csv:2"]
    assert shard.worked
    (tmp_path / "tables" / "a.csv").unlink()
    last = make(tmp_path, "ingest", "curate", "shard")
    assert [s.manifest.digest for s in last] == [s.manifest.digest for s in first]
    assert kept(tmp_path) == ["one.csv:2", "two.csv:2", "two.csv:3"]


def test_without_deduplicate_all_are_kept(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x", "1,5,6,x"])
    write_params(tmp_path, {**TABLES, "curate": {**TABLES["curate"], "deduplicate": False}})
    assert make(tmp_path, "ingest", "curate", "shard")[1].duplicates == 0
    assert kept(tmp_path) == ["one.csv:2", "one.csv:3"]


def test_of_many_rows_the_first_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x"] * 1000, two=["1,5,6,x"] * 3)
    assert make(tmp_path, "ingest", "curate")[1].duplicates == 1002
    entries = listed(tmp_path)
    assert entries[:NAMED] == [{"name": f"one.csv:{line}", "of": "one.csv:2"} for line in range(3, 3 + NAMED)]
    assert entries[NAMED] == {"name": "one.csv", "more": 999 - NAMED}
    assert [entry["name"] for entry in entries[NAMED + 1 :]] == ["two.csv:2", "two.csv:3", "two.csv:4"]


def test_lines_are_counted_by_file_in_a_domain_beside_one_of_files(recipe: Path) -> None:
    (recipe / "texts" / "again.txt").write_bytes((recipe / "texts" / "doc000.txt").read_bytes())
    (recipe / "lines.jsonl").write_text('{"text": "line"}\n' * (NAMED + 9))
    sources = {"a": ["texts/*.txt"], "b": ["lines.jsonl"]}
    write_params(recipe, {**TINY, "ingest": {"sources": sources}})
    assert make(recipe, "ingest", "curate")[1].duplicates == 1 + NAMED + 8
    entries = listed(recipe)
    assert entries[0] == {"name": "a/doc000.txt", "of": "a/again.txt"}
    assert entries[1] == {"name": "b/lines.jsonl:2", "of": "b/lines.jsonl:1"}
    assert entries[1 + NAMED :] == [{"name": "b/lines.jsonl", "more": 8}]


def test_one_image_in_two_classes_is_no_duplicate(tmp_path: Path) -> None:
    """They contradict each other, and which is right is not for the order of names to say."""
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(file.getvalue())
    write_params(tmp_path, {**TINY, "ingest": {"sources": ["images"]}, "curate": {"files_per_object": 1}})
    curate = make(tmp_path, "ingest", "curate")[1]
    assert listed(tmp_path) == [{"name": "cat/2.png", "of": "cat/1.png"}]
    assert len(set(curate.manifest.table["split"].to_pylist())) == 1


def test_an_object_that_holds_duplicates_only_is_no_shard(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x", "2,5,6,z"], two=["1,5,6,x", "2,5,6,z"])
    write_params(tmp_path, {**TABLES, "shard": {"shuffle_objects": 1}})
    make(tmp_path, "ingest", "curate", "shard")
    assert kept(tmp_path) == ["one.csv:2", "one.csv:3"]
    assert make(tmp_path, "shard")[0].worked == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40), st.integers(1, 5), st.integers(1, 9))
def test_the_first_of_equal_digests_is_kept_however_they_are_shared_out(
    cells: list[tuple[int, int]], objects: int, at_once: int
) -> None:
    digests = np.array(cells, np.uint64).reshape(-1, 2)
    pieces = np.array_split(digests, objects)
    columns = [pa.chunked_array([to_arrow(piece)]) for piece in pieces]
    records = [{"stats": json.dumps({"rows": len(piece)}), "number": number} for number, piece in enumerate(pieces)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_AT_ONCE", at_once)
        patch.setattr(duplicates, "read_column", lambda zone, record, name: columns[record["number"]])
        found = duplicates.find(None, records)  # type: ignore[arg-type]
    first: dict[tuple[int, int], int] = {}
    for row, cell in enumerate(cells):
        first.setdefault(cell, row)
    expected = [(row, first[cell]) for row, cell in enumerate(cells) if first[cell] != row]
    assert [*zip(found.left_out.tolist(), found.kept.tolist(), strict=True)] == expected
    ends = np.cumsum([len(piece) for piece in pieces])
    by_object = [found.of(number)[0] + end - len(pieces[number]) for number, end in enumerate(ends)]
    assert np.concatenate(by_object).tolist() == [row for row, _ in expected]


@given(st.sets(st.integers(0, 200)), st.integers(0, 60))
def test_what_is_left_out_is_packed_in_a_bit_a_row_or_less(left_out: set[int], more: int) -> None:
    rows = max(left_out, default=0) + 1 + more
    packed = pack(rows, np.array(sorted(left_out), np.int64))
    assert kept_rows(rows, packed).tolist() == [row for row in range(rows) if row not in left_out]
    assert len(packed or b"") <= (rows + 7) // 8


def test_a_damaged_object_is_named(tmp_path: Path) -> None:
    write(tmp_path, one=["1,5,6,x", "2,5,6,z"])
    [record] = make(tmp_path, "ingest", "curate")[1].manifest.records()
    zone = Workspace.open(tmp_path).zone("curated")
    assert curated.read_column(zone, record, curated.ID).to_pylist() == ["one.csv:2", "one.csv:3"]
    path = zone.local_path(record["path"])
    assert path is not None
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(DigestError, match=record["path"]):
        curated.read_column(zone, record, curated.ID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left_out": b"\xff\xff\xff\x7f"}, r"row 2147483647 of 40 is left out"),
        ({"left_out": b"abc"}, r"differ"),
        ({"left_out": bytes(50)}, r"50 bytes say which of 40 rows"),
        ({"left_out": None}, r"40 of 40 rows are kept, not 39"),
        ({"rows": 5}, r"39 of 40 rows are kept, not 5"),
        ({"stats": "{"}, r"facts of its objects cannot be read"),
        ({"stats": None}, r"facts of its objects cannot be read"),
    ],
)
def test_a_manifest_that_says_other_rows_than_its_objects_hold_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Whoever made it: a seal says only that it is whole."""
    write(tmp_path, one=["1,5,6,x", "1,5,6,x", *[f"{number},5,6,x" for number in range(2, 40)]])
    make(tmp_path, "ingest", "curate")
    zone = Workspace.open(tmp_path).zone("curated")
    manifest = zone.manifest()
    about = {name: value for name, value in manifest.header.items() if name not in ("format", "zone")}
    Manifest.build("curated", [record | change for record in manifest.records()], **about).save(zone.folder)
    with pytest.raises(FormatError, match=message):
        make(tmp_path, "shard")
