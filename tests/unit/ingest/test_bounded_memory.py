"""The memory of readers and of the stage doesn't grow with a file."""

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import TINY, write_params

from pipelines.ingest import curate, curated, data_stage
from pipelines.ingest.quarantine import rows_of
from pipelines.ingest.readers.jsonl_rows import read_jsonl
from pipelines.ingest.readers.tables.csv_rows import read_csv
from pipelines.ingest.readers.tables.parquet_rows import read_parquet
from pipelines.ingest.rows import Rows
from pipelines.ingest.stage import journal_of, run
from pipelines.params import Curate
from pipelines.workspace import Workspace
from storage import lake

PARAMS = Curate(label="y", features=["a"], max_quarantined=10**7)
MIB = 1 << 20
TEXT = b"word " * 2000


class Repeated(io.RawIOBase):
    """`begin`, then `part` so many `times`, which are nowhere at once."""

    def __init__(self, begin: bytes, part: bytes, times: int) -> None:
        self._left, self._part, self._times = begin, part, times

    def read(self, size: int = -1) -> bytes:
        while self._times and len(self._left) < size:
            count = min(self._times, max(1, size // len(self._part)))
            self._left, self._times = self._left + self._part * count, self._times - count
        found, self._left = self._left[:size], self._left[size:]
        return found


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """Arrow's memory, counted from here on."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    yield counted
    pa.set_memory_pool(usual)


def counted(pieces: Iterator[Rows]) -> tuple[int, int]:
    """How many rows are kept, and how many set aside."""
    kept = aside = 0
    for piece in pieces:
        kept += len(piece.ids)
        aside += rows_of(piece.quarantined)
    return kept, aside


@pytest.mark.parametrize(
    ("read", "begin", "part", "rows"),
    [
        (read_csv, b"a,note,y\n", b"1,%b,u\n" % TEXT, (1, 0)),
        (read_csv, b"a,note,y\n", b'1,"%b\n%b",u\r\n' % (TEXT, TEXT), (1, 0)),
        (read_csv, b"a,note,y\n", b'1,x"%b",u\n1,"%b,u\n' % (TEXT, TEXT), (1, 1)),  # quotes out of place
        (read_csv, b"a,note,y\n1,u,", TEXT, None),  # a line without an end
        (read_csv, b'"a,b\n', b"1,2,%b\n" % TEXT, (0, 1)),  # no header: all lines are counted
        (read_csv, "a,b\n".encode("utf-16"), f"1,2{TEXT.decode()}\n".encode("utf-16-le"), (0, 1)),
        (read_jsonl, b"", b'{"text": "%b"}\n' % TEXT, (1, 0)),
        (read_jsonl, b"", b"no json: %b\r" % TEXT, (0, 1)),
    ],
    ids=["csv", "line breaks", "quotes", "one line", "no header", "utf-16", "jsonl", "no json"],
)
def test_a_reader_holds_a_piece_of_a_file(
    read: Callable[[str, BinaryIO, Curate], Iterator[Rows]],
    begin: bytes,
    part: bytes,
    rows: tuple[int, int] | None,
    pool: pa.MemoryPool,
) -> None:
    times = 160 * MIB // len(part)
    counted(read("t", io.BytesIO(begin + part), PARAMS))  # imports what it needs
    tracemalloc.start()
    try:
        found = counted(read("t", cast("BinaryIO", Repeated(begin, part, times)), PARAMS))
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
        assert pool.max_memory() < 32 * MIB
    finally:
        tracemalloc.stop()
    if rows is not None:
        assert found == (rows[0] * times, rows[1] * times + (begin[:2] == b"\xff\xfe"))


def test_of_a_large_row_group_few_rows_are_held(tmp_path: Path, pool: pa.MemoryPool) -> None:
    rows = 2_000_000
    columns = {name: np.random.default_rng(0).normal(size=rows) for name in ("a", "b", "c", "d")}
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pa.table(columns | {"y": np.arange(rows) % 7}), file, row_group_size=rows)
    before = pool.max_memory()
    params = Curate(label="y")
    with file.open("rb") as opened:
        assert counted(read_parquet("t", opened, params, held=4 * MIB)) == (rows, 0)
    assert pool.max_memory() - before < file.stat().st_size / 2


def test_a_row_group_that_ends_badly_is_set_aside_even_where_its_rows_would_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    table = pa.table({"a": [number / 7 for number in range(20_000)], "y": [1] * 20_000})
    pyarrow.parquet.write_table(table, file, use_dictionary=False, compression="gzip", row_group_size=12_000,
                                data_page_size=4096)  # fmt: skip
    data = bytearray(file.read_bytes())
    at = data.rindex(b"\x1f\x8b", 0, pyarrow.parquet.read_metadata(file).row_group(0).column(1).data_page_offset)
    data[at + 20 : at + 40] = bytes(20)  # of the last page of `a`
    pieces = list(read_parquet("t", io.BytesIO(bytes(data)), PARAMS, 1000, 0))
    (entry,) = [entry for piece in pieces for entry in piece.quarantined]
    assert (entry["name"], entry["rows"]) == ("t:1", 12_000)
    assert [name for piece in pieces for name in piece.ids] == [f"t:{row}" for row in range(12_001, 20_001)]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_are_the_same_however_few_are_in_memory(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    rows = [
        {"a": float(number), "b": number % 11, "y": "uv"[number % 2], "text": f"t{number}"} for number in range(5000)
    ]
    file = tmp_path / "in" / f"t.{form}"
    if form == "csv":
        lines = ["a,b,y,text", *(",".join(str(value) for value in row.values()) for row in rows)]
        lines[70] = "x,1,u,t"
        file.write_text("\n".join(lines))
    elif form == "jsonl":
        file.write_text("\n".join(["no json", *map(json.dumps, rows)]))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=700)
    options = {"label": "y", "features": ["a", "b"]} if form != "jsonl" else {}
    write_params(tmp_path, {**TINY, "ingest": {"sources": ["in"]}, "curate": options})

    def made() -> tuple[list[Any], dict[str, int], bytes]:
        ws = Workspace.open(tmp_path)
        for name in ("ingest", "curate"):
            run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)
        zone = ws.zone("curated")
        manifest = zone.manifest()
        tables = [curated.read_whole(zone, record).to_pylist() for record in manifest.records()]
        aside = (zone.folder / "quarantine.jsonl").read_bytes() if "quarantine" in manifest.header else b""
        (zone.folder / "manifest.arrow").unlink()
        return tables, manifest.header["counts"], aside

    first = made()
    assert sum(first[1].values()) == len(rows) + (form == "jsonl")
    for module in (curate, curated):
        monkeypatch.setattr(module, "TOGETHER", 1000)
    monkeypatch.setattr(lake, "_VERIFIED", 100)
    assert made() == first
