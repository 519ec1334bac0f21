"""Parquet: which columns will do, and what a hostile file may cost."""

import datetime
import io
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.whole_files import whole

from pipelines.ingest.readers.tables import parquet_rows
from pipelines.ingest.readers.tables.parquet_pages import claimed
from pipelines.params import Curate
from storage.errors import DataError

read_parquet = whole(parquet_rows.read_parquet)
TABLE = Curate(label="y", features=["a"])


def written(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file, compression="zstd", **options)
    return file.getvalue()


def test_columns_that_hold_no_numbers_are_told_at_once_before_rows_are_read() -> None:
    data = written({"a": [1.0], "day": [datetime.date(2026, 1, 1)], "parts": [[1.0, 2.0]], "y": [{"k": 1}]})
    with pytest.raises(DataError) as raised:
        read_parquet("t.parquet", data, Curate(label="y"))
    message = str(raised.value)
    assert "column 'day' holds date32" in message
    assert "column 'parts' holds list<" in message
    assert "label column 'y' holds struct<" in message


def test_texts_booleans_and_large_integers_are_read_as_they_are_meant() -> None:
    data = written(
        {"a": pa.array([" 1.5", "x", None]).dictionary_encode(), "b": [2**60 + 1, 2, 3], "y": [True, False, True]}
    )
    rows = read_parquet("t.parquet", data, Curate(label="y"))
    assert rows.table.to_pydict() == {"a": [1.5], "b": [float(2**60)], "label": ["true"]}
    assert [entry["reason"] for entry in rows.quarantined] == [
        "column 'a': 'x' is not a finite number",
        "column 'a': None is not a finite number",
    ]


def test_whole_numbers_are_one_class_as_integers_and_as_floats() -> None:
    found = [read_parquet("t.parquet", written({"a": [1.0], "y": label}), TABLE) for label in ([1], [1.0], ["1.0"])]
    assert [rows.table["label"].to_pylist() for rows in found] == [["1"]] * 3


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"a": np.zeros(50_000), "y": ["u"] * 50_000}, {}),
        ({"a": np.zeros(20), "y": ["u"] * 20, "text": ["x" * 100_000 + str(row) for row in range(20)]},
         {"use_dictionary": False}),
        ({"a": np.zeros(20), "y": ["u"] * 20, "blob": pa.array([b"x" * 100_000] * 20, pa.binary(100_000))}, {}),
    ],
    ids=["rows", "pages", "fixed"],
)  # fmt: skip
def test_a_file_that_unpacks_to_far_more_than_it_is_is_set_aside_before_it_is_read(
    columns: dict[str, Any], options: dict[str, Any]
) -> None:
    data = written(columns, **options)
    assert len(data) < 20_000
    params = TABLE.model_copy(update={"max_unpacked_mb": 1, "max_quarantined": 10**6})
    before = pa.total_allocated_bytes()
    (entry,) = read_parquet("t.parquet", data, params).quarantined
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert entry["rows"] == len(columns["a"])
    assert "MiB of memory, more than 1: cut it into smaller files, or raise curate.max_unpacked_mb" in entry["reason"]
    with pytest.raises(DataError, match=r"curate\.max_unpacked_mb") if len(columns["a"]) > 100 else nullcontext():
        read_parquet("t.parquet", data, params.model_copy(update={"max_quarantined": 100}))
    assert len(read_parquet("t.parquet", data, params.model_copy(update={"max_unpacked_mb": 64})).ids) == entry["rows"]


def footer_says(data: bytes, what: str, column: int, size: int) -> bytes:
    """The file, with a footer that says `size` of the column's bytes, in as many bytes as the truth."""

    def number(value: int, length: int) -> bytes:
        groups = [(2 * value >> 7 * place) & 0x7F for place in range(length)]
        return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])

    true = getattr(pyarrow.parquet.read_metadata(io.BytesIO(data)).row_group(0).column(column), what)
    length = -(-(2 * true).bit_length() // 7)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = data[:footer] + data[footer:].replace(number(true, length), number(size, length))
    about = pyarrow.parquet.read_metadata(io.BytesIO(found)).row_group(0).column(column)
    assert getattr(about, what) == size != true
    return found


def test_columns_that_claim_more_bytes_than_the_file_has_are_not_looked_at() -> None:
    """A small footer might name the same pages for thousands of columns."""
    values = np.random.default_rng(0).random(700)
    data = written({"a": values, "y": ["u"] * 700}, use_dictionary=False)
    found = footer_says(data, "total_compressed_size", 0, 8000)
    assert len(found) == len(data) < 8000
    (entry,) = read_parquet("t.parquet", found, TABLE.model_copy(update={"max_quarantined": 700})).quarantined
    assert entry["rows"] == 700
    assert entry["reason"] == f"its columns have 8,000 bytes, the file {len(found):,}: it is damaged"


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
@pytest.mark.parametrize("text", [False, True])
def test_pages_claim_what_an_honest_footer_says(text: bool, options: dict[str, Any]) -> None:
    """But for their headers, which count there."""
    values = np.random.default_rng(0).integers(0, 2**40, 50_000)
    data = written({"a": values.astype(str) if text else values}, **options)
    chunk = pyarrow.parquet.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    found = claimed(io.BytesIO(data), start, start + chunk.total_compressed_size)
    assert 0.99 * chunk.total_uncompressed_size < found < chunk.total_uncompressed_size


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_unpacks_to_more_than_the_footer_says_is_not_unpacked(version: str, pool: pa.MemoryPool) -> None:
    texts = ["x" * 1_000_000 + str(row) for row in range(40)]
    columns = {"a": np.zeros(40), "y": ["u"] * 40, "text": texts}
    data = written(columns, use_dictionary=False, data_page_version=version)
    data = footer_says(data, "total_uncompressed_size", 2, 100)
    params = TABLE.model_copy(update={"max_unpacked_mb": 8, "max_quarantined": 10**6})
    before = pool.max_memory()
    (entry,) = read_parquet("t.parquet", data, params).quarantined
    assert pool.max_memory() - before < 4 << 20
    assert entry["rows"] == 40
    assert "rows would take 38 MiB of memory, more than 8" in entry["reason"]


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """Arrow's memory, counted from here on."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    yield counted
    pa.set_memory_pool(usual)


@pytest.mark.parametrize("column", ["y", "other", "list"])
def test_a_long_text_that_is_named_many_times_is_never_written_out(column: str, pool: pa.MemoryPool) -> None:
    """1 GB, of a kilobyte."""
    texts: pa.Array = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["x" * 1_000_000])
    if column == "list":
        texts = pa.ListArray.from_arrays(np.arange(1001, dtype=np.int32), texts)
    data = written({"a": np.zeros(1000), "y": ["u"] * 1000} | {column: texts}, store_schema=False)
    assert len(data) < 3000
    rows = read_parquet("t.parquet", data, TABLE.model_copy(update={"max_quarantined": 1000}))
    assert len(rows.ids) == (0 if column == "y" else 1000)
    assert len(rows.quarantined) == 1000 - len(rows.ids)
    assert pool.max_memory() < 100 << 20
