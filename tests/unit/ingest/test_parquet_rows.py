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

from pipelines.ingest.readers import parquet_rows
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
