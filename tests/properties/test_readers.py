"""Readers: what goes in is what is kept and what is set aside, row by row, wherever a file is cut into blocks."""

import io
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from hypothesis import example, given
from hypothesis import strategies as st
from support.whole_files import whole

from pipelines.ingest.quarantine import rows_of
from pipelines.ingest.readers import jsonl_rows, row_digests
from pipelines.ingest.readers.lookahead import Lookahead
from pipelines.ingest.readers.tables import csv_rows, parquet_rows
from pipelines.ingest.readers.tables.records import Grammar, records
from pipelines.ingest.rows import Rows
from pipelines.params import Curate

read_csv = whole(csv_rows.read_csv)
read_jsonl = whole(jsonl_rows.read_jsonl)
read_parquet = whole(parquet_rows.read_parquet)
PARAMS = Curate(label="y", features=["a"], max_quarantined=10_000, null_values=["NA"])
HEADER = b"a,note,y\n"
#: Bytes of which anything may come: quotes out of place, line ends of all kinds, what is no UTF-8, marks amid the file.
SCRAPS = st.sampled_from(
    [b"a", b"1", b"-2.5", b"1_0", b" ", b"NA", b",", b",", b'"', b'"', b'""', b"\n", b"\n", b"\r\n", b"\r", b"\xff",
     b"\xef\xbb\xbf", "é".encode(), b'1,"x\n', b"1,x,y\n", b'1,"x\r\ny",z\r\n', b"\t", b"\x0b"]
)  # fmt: skip
BLOCKS = st.integers(1, 40)


def line_of(name: str) -> int:
    return int(name.rpartition(":")[2])


def places(rows: Rows) -> tuple[list[int], list[int]]:
    return [line_of(name) for name in rows.ids], [line_of(entry["name"]) for entry in rows.quarantined]


def told(rows: Rows) -> list[Any]:
    assert rows.content is not None
    aside = sorted(rows.quarantined, key=lambda entry: line_of(entry["name"]))
    return [rows.ids, rows.table.to_pylist(), aside, rows.content.to_pylist()]


def standing_at(data: bytes, start: int, ahead: int) -> Lookahead:
    """One of a file of which `start` bytes have been read."""
    found = Lookahead(io.BytesIO(data), ahead)
    found.need(start)
    found.start = start
    return found


@given(st.text("a\r\n", max_size=20).map(str.encode), st.integers(1, 5))
def test_a_lookahead_knows_lines_whatever_of_them_it_has(data: bytes, ahead: int) -> None:
    lines = data.splitlines(keepends=True)
    for first in range(len(lines) + 1):
        file, place = Lookahead(io.BytesIO(data), ahead), 0
        for line in lines[:first]:
            assert file.more()
            file.skip_line()
            place += len(line)
            assert file.place == place
        assert file.count_lines() == len(lines) - first


@given(st.lists(SCRAPS, max_size=40).map(b"".join), BLOCKS)
@example(b'1,"x,y\n2,x,y\n', 5)
@example(b'1,"x\r\ny",z\r\n2,"",z\r', 3)
def test_each_line_is_of_one_record_or_set_aside_or_blank(body: bytes, block: int) -> None:
    damaged: list[int] = []
    lines = body.splitlines()
    owners = [0] * len(lines)
    file = standing_at(HEADER + body, len(HEADER), block)
    for part in records(file, 1, Grammar(","), lambda line, _: damaged.append(line), block):
        for start, end, line, span in zip(part.starts, part.ends, part.lines, part.spans, strict=True):
            record = part.data[start:end]
            assert record.splitlines() == lines[line - 1 : line - 1 + span]
            assert part.data[start - 1 : start] in (b"\n", b"\r")
            for taken in range(line - 1, line - 1 + span):
                owners[taken] += 1
    for line in damaged:
        owners[line - 1] += 1
    assert {*owners} <= {0, 1}
    assert all(owner or not line for owner, line in zip(owners, lines, strict=True))


@given(st.lists(SCRAPS, max_size=40).map(b"".join), BLOCKS, st.integers(1, 40), st.integers(20, 60), st.integers(2, 9))
def test_records_are_the_same_however_little_of_the_file_is_in_memory(
    body: bytes, block: int, ahead: int, largest: int, fields: int
) -> None:
    """A record that is too large included, and the rest of its line."""

    def found(block: int, ahead: int) -> tuple[list[tuple[bytes, int, int]], list[int]]:
        damaged: list[int] = []
        file, taken = standing_at(HEADER + body, len(HEADER), ahead), []
        for part in records(file, 1, Grammar(",", 1 << 20, largest), lambda at, _: damaged.append(at), block):
            assert len(part.data) <= 3 * (block + largest + ahead + 3)
            for start, end, line, span in zip(part.starts, part.ends, part.lines, part.spans, strict=True):
                assert end - start <= largest
                taken.append((part.data[start:end], int(line), int(span)))
        return taken, damaged

    assert found(min(block, largest), ahead) == found(largest, 1 << 20)


@given(st.lists(SCRAPS, max_size=40).map(b"".join), BLOCKS)
@example(b"1,x,y\n1_0,x,y\n+1,x,y\n\t1 ,x, z\n1e999,x,z\n.5,x,NA\n", 12)
def test_what_becomes_of_a_csv_row_depends_on_no_block(body: bytes, block: int) -> None:
    whole = read_csv("t.csv", HEADER + body, PARAMS)
    assert told(read_csv("t.csv", HEADER + body, PARAMS, block)) == told(whole)
    kept, aside = places(whole)
    assert not {*kept} & {*aside}
    assert len(kept) + rows_of(whole.quarantined) <= len(body.splitlines())


CELLS = st.text(st.sampled_from('xé,"\n\r \t'), max_size=6)
ROWS = st.lists(st.tuples(st.integers(-99, 99) | st.floats(-9, 9), CELLS, st.sampled_from(["u", 'v"', "w,\r\nw"])))


def written(rows: list[tuple[Any, ...]], all_quoted: bool, end: str) -> bytes:
    def cell(value: Any) -> str:
        text = str(value)
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if all_quoted or re.search('[",\r\n]', text) else text

    return "".join(",".join(map(cell, row)) + end for row in [("a", "note", "y"), *rows]).encode()


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]), BLOCKS, st.booleans(), st.booleans())
def test_every_row_that_is_written_well_is_kept_as_it_is(
    rows: list[tuple[float, str, str]], all_quoted: bool, end: str, block: int, mark: bool, blank: bool
) -> None:
    around = blank * end.encode()
    data = b"\xef\xbb\xbf" * mark + around + written(rows, all_quoted, end) + around
    found = read_csv("t.csv", data, PARAMS, block)
    assert found.quarantined == []
    assert found.table.to_pylist() == [{"a": float(a), "label": label} for a, _, label in rows]
    assert found.content is not None
    assert len({*found.content.to_pylist()}) == len({(str(a), note, label) for a, note, label in rows})


@given(ROWS.filter(bool), st.data())
def test_a_lost_quote_costs_the_line_that_lost_it(rows: list[tuple[float, str, str]], data: st.DataObject) -> None:
    """Where no other field has quotes."""
    plain = [f"{a},{re.sub('[^xé ]', '', note)},u" for a, note, _ in rows]
    at = data.draw(st.integers(0, len(rows) - 1))
    plain[at] = '1,"' + plain[at].partition(",")[2]
    found = read_csv("t.csv", HEADER + "\n".join(plain).encode(), PARAMS)
    kept, aside = places(found)
    assert aside == [at + 2]
    assert kept == [line for line in range(2, len(rows) + 2) if line != at + 2]


LINES = st.one_of(
    CELLS.map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
    st.sampled_from(
        [b"", b"  ", b"[1]", b"{}", b'{"text": 1}', b'{"text": "\\ud800"}', b"\xff", b'{"text": "\xff"}', b"["]
    ),
)


@given(st.lists(LINES), st.sampled_from([b"\n", b"\r\n", b"\r"]), BLOCKS, st.booleans(), st.booleans())
def test_each_line_of_jsonl_is_kept_or_set_aside_or_blank(
    lines: list[bytes], end: bytes, block: int, mark: bool, far: bool
) -> None:
    """`far`: behind what is looked at first."""
    lines = [b" " * 4100 * far, *lines]
    data = b"\xef\xbb\xbf" * mark + end.join(lines)
    found = read_jsonl("t.jsonl", data, PARAMS, block)
    kept, aside = places(found)
    assert sorted([*kept, *aside]) == [number for number, line in enumerate(lines, 1) if line.strip()]
    assert found.table.to_pylist() == [{"text": json.loads(lines[line - 1])["text"]} for line in kept]
    assert told(read_jsonl("t.jsonl", data, PARAMS)) == told(found)


VALUES = st.none() | st.floats() | st.sampled_from([1e39, 0.0, -0.0])


@given(st.lists(st.tuples(VALUES, st.none() | st.sampled_from(["", " u", "u", "NA", "1.0", "1"]))), st.integers(1, 9))
def test_each_row_of_parquet_is_kept_or_set_aside(cells: list[tuple[float | None, str | None]], group: int) -> None:
    schema = pa.schema({"a": pa.float64(), "y": pa.string()})
    file = io.BytesIO()
    table = pa.Table.from_pylist([dict(zip(schema.names, cell, strict=True)) for cell in cells], schema)
    pyarrow.parquet.write_table(table, file, row_group_size=group)
    found = read_parquet("t.parquet", file.getvalue(), PARAMS)
    good = [a is not None and abs(a) <= 3.4028234e38 and (y or "").strip() not in ("", "NA") for a, y in cells]
    kept, aside = places(found)
    assert kept == [row for row, fine in enumerate(good, 1) if fine]
    assert aside == [row for row, fine in enumerate(good, 1) if not fine]
    labels = {"u": "u", " u": "u", "1": "1", "1.0": "1"}
    assert found.table.to_pylist() == [
        {"a": cells[row - 1][0], "label": labels[cells[row - 1][1] or ""]} for row in kept
    ]
    for batch, held in ((1, 0), (2, 30), (3, 1 << 20)):
        assert told(read_parquet("t.parquet", file.getvalue(), PARAMS, batch, held)) == told(found)


NESTED = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-2, 2),
        "f": st.none() | st.sampled_from([0.0, 1.5]),
        "s": st.none() | st.text("ab\0", max_size=20),
        "l": st.none() | st.lists(st.none() | st.text("ab", max_size=1), max_size=3),
        "o": st.none() | st.fixed_dictionaries({"k": st.none() | st.booleans()}),
    }
)
SCHEMA = pa.schema(
    {
        "n": pa.int32(), "f": pa.float32(), "s": pa.string(), "l": pa.list_(pa.string()),
        "o": pa.struct({"k": pa.bool_()}),
    }
)  # fmt: skip


@given(st.lists(NESTED, max_size=20), st.integers(0, 20))
def test_rows_have_equal_digests_where_they_are_equal(rows: list[dict[str, Any]], cut: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    digests = row_digests.of_rows(batch).to_pylist()
    names = [json.dumps(row, sort_keys=True) for row in rows]
    assert len({*zip(names, digests, strict=True)}) == len({*names}) == len({*digests})
    assert row_digests.of_rows(batch.slice(cut)).to_pylist() == digests[cut:]
    texts = pa.RecordBatch.from_arrays([batch["n"], batch["s"].dictionary_encode()], ["n", "s"])
    assert row_digests.of_rows(texts) == row_digests.of_rows(batch.select(["n", "s"]))


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_bytes_have_equal_digests_where_they_are_equal(parts: list[bytes]) -> None:
    data = b"|".join(parts)
    ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64) - 1
    starts = ends - np.array([len(part) for part in parts], np.int64)
    digests = row_digests.of_spans(data, starts, ends).to_pylist()
    assert len({*zip(parts, digests, strict=True)}) == len({*parts}) == len({*digests})
