"""Readers: the bytes of a raw file → typed rows, and what had to be set aside.

An author of a reader writes one function `(name, bytes, params) → Rows`. Names, splits, deduplication, Parquet and the
quarantine are the stage's.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipelines.ingest.images import read_image
from pipelines.ingest.rows import Rows
from pipelines.params import Curate
from storage.errors import DataError

#: Kinds of curated data: documents of text, encoded images with a label, rows of numbers with a label.
KINDS = {"text": "text", "image_folder": "image", "csv": "table", "jsonl": "text", "parquet": "table"}
_SUFFIXES = {
    "csv": {".csv", ".tsv"},
    "jsonl": {".jsonl", ".ndjson"},
    "parquet": {".parquet"},
    "image_folder": {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"},
}


ID = "sample_id"  # the curated column that names a sample; no feature may have this name
_LARGEST = 3.4028234e38  # of float32, in which features are stored
_BLOCK = 65_536  # rows of a Parquet file at a time

Reader = Callable[[str, bytes, Curate], Rows]


def detect(names: Iterable[str]) -> str:
    """The reader for a dataset, by the suffixes of its files. Raises DataError when they don't agree."""
    found = {
        next(
            (reader for reader, known in _SUFFIXES.items() if PurePosixPath(name).suffix.lower() in known),
            "text",
        )
        for name in names
    }
    if len(found) > 1:
        raise DataError(
            f"curate.reader=auto: the sources mix {', '.join(sorted(found))}. Name one reader in curate.reader, and "
            "leave the other files out with ingest.exclude."
        )
    return found.pop() if found else "text"


def read_text(name: str, data: bytes, params: Curate) -> Rows:
    """One document: the whole file, UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return _none(name, f"not UTF-8: {error.reason} at byte {error.start}", {"text": pa.large_string()})
    ends = pa.array([0, len(data)], pa.int64())
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, ends.buffers()[1], pa.py_buffer(data)])  # no copy
    return Rows([name], pa.table({"text": text}))


def read_jsonl(name: str, data: bytes, params: Curate) -> Rows:
    """A document a line: the field `curate.text_field` of a JSON object."""
    ids, texts, aside = [], [], []
    for number, line in enumerate(_lines(data), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[params.text_field]
            if not isinstance(text, str):
                raise TypeError(f"{params.text_field!r} is {type(text).__name__}, not a string")
            text.encode()  # a lone surrogate is no text
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            aside.append({"name": f"{name}:{number}", "reason": f"{type(error).__name__}: {error}"})
            continue
        ids.append(f"{name}:{number}")
        texts.append(text)
    return Rows(ids, pa.table({"text": pa.array(texts, pa.large_string())}), aside)


def _lines(data: bytes) -> Iterator[bytes]:
    """As `data.splitlines()`, without a copy of them all at once."""
    for line in io.BytesIO(data):  # which shares the bytes
        yield from line.splitlines()


def read_csv(name: str, data: bytes, params: Curate) -> Rows:
    """A row a line, comma- (or, in .tsv, tab-) separated, with a header."""
    aside: list[dict[str, Any]] = []

    def wrong_fields(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        aside.append({"name": f"{name}:{row.number}", "reason": reason})
        return "skip"

    form = {"delimiter": "\t" if name.lower().endswith(".tsv") else ",", "newlines_in_values": True}
    one = pyarrow.csv.ReadOptions(use_threads=False)
    try:
        skipping = pyarrow.csv.ParseOptions(**form, invalid_row_handler=lambda _: "skip")
        with pyarrow.csv.open_csv(io.BytesIO(data), one, skipping) as first:  # reads no further than it must
            columns = first.schema.names
        parsing = pyarrow.csv.ParseOptions(**form, invalid_row_handler=wrong_fields)
        strings = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        with pyarrow.csv.open_csv(io.BytesIO(data), one, parsing, strings) as blocks:
            table, reasons = _numeric(name, columns, blocks, params)
    except pa.ArrowInvalid as error:
        return _none(name, f"not a CSV table: {error}", {})
    skipped = [int(entry["name"].rpartition(":")[2]) for entry in aside]
    lines = np.delete(np.arange(2, 2 + table.num_rows + len(skipped)), np.array(skipped, np.int64) - 2)
    rows = _usable(name, table, lines, reasons)
    return Rows(rows.ids, rows.table, [*aside, *rows.quarantined])


def parquet_table(data: Buffer) -> pa.Table:
    """The table in a Parquet file's bytes. Raises ArrowInvalid.

    In this thread alone: Arrow's own threads may let go of `data` later, and one that does so while the interpreter
    ends takes the process down with it.
    """
    with pyarrow.parquet.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        return file.read(use_threads=False)


def read_parquet(name: str, data: bytes, params: Curate) -> Rows:
    """A table of numbers, a row a sample."""
    try:
        with pyarrow.parquet.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            columns = file.schema_arrow.names
            table, reasons = _numeric(name, columns, file.iter_batches(_BLOCK, use_threads=False), params)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:  # OSError: a page that does not unpack
        return _none(name, f"not a Parquet file: {error}", {})
    return _usable(name, table, np.arange(1, table.num_rows + 1), reasons)


def _numeric(
    name: str, columns: list[str], blocks: Iterable[pa.RecordBatch], params: Curate
) -> tuple[pa.Table, dict[int, str]]:
    """Features as float64 and the label, of all rows; and row → which column doesn't parse, for those that are no good.
    A block is let go of before the next one is read."""
    features = _features(name, columns, params)
    reasons: dict[int, str] = {}
    parts: dict[str, list[pa.Array]] = {column: [] for column in (*features, "label")}
    kinds = dict.fromkeys(features, pa.float64()) | {"label": pa.float64() if params.target == "value" else pa.string()}
    assert params.label is not None
    first = 0
    for block in blocks:
        for column in features:
            parts[column].append(_floats(block[column], column, first, reasons))
        if params.target == "value":
            parts["label"].append(_floats(block[params.label], params.label, first, reasons))
        else:
            parts["label"].append(_classes(name, block[params.label], params.label, first, reasons))
        first += block.num_rows
    whole = {column: pa.chunked_array(parts.pop(column), kind).combine_chunks() for column, kind in kinds.items()}
    return pa.table(whole), reasons


def _features(name: str, columns: list[str], params: Curate) -> list[str]:
    """The names of the features. Raises DataError where `columns` are not what the parameters say."""
    if params.label is None:
        raise DataError(f"curate.label is not set: which column of {name} is to be predicted? {columns}")
    features = params.features or [column for column in columns if column != params.label]
    for column in (params.label, *features):
        if column not in columns:
            from pipelines.params import suggestion

            setting = "curate.label" if column == params.label else "curate.features"
            raise DataError(f"{setting}: {name} has no column {column!r}{suggestion(column, columns)}")
    if twice := sorted({c for c in (params.label, *features) if columns.count(c) > 1}):
        raise DataError(f"{name}: the header has {', '.join(twice)} twice. Give each column a name of its own.")
    if ID in features or "label" in features:
        raise DataError(
            f"{name}: a feature is named {ID!r} or 'label', which the curated zone uses for its own columns. "
            "Leave it out with curate.features, or rename it."
        )
    return features


def _usable(name: str, table: pa.Table, lines: NDArray[np.int64], reasons: dict[int, str]) -> Rows:
    """The rows but for those that `reasons` sets aside; row r was in line lines[r]."""
    aside = [{"name": f"{name}:{lines[row]}", "reason": reason} for row, reason in sorted(reasons.items())]
    if reasons:
        keep = np.delete(np.arange(table.num_rows), list(reasons))
        table, lines = table.take(pa.array(keep)), lines[keep]
    return Rows([f"{name}:{line}" for line in map(int, lines)], table, aside)


def _classes(name: str, label: pa.Array, column: str, first: int, reasons: dict[int, str]) -> pa.Array:
    """Labels as strings; notes in `reasons` the rows without one, counted from `first`. Raises DataError for a column
    of lists, structs and the like."""
    try:
        classes = label.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{name}: the label column {column!r} holds {label.type}, which names no classes. Set curate.label to a "
            "column of text, integers or booleans, or curate.target: value for a number to regress."
        ) from error
    blank = [value for value in classes.unique().to_pylist() if value is None or not value.strip()]
    for row in pa.compute.indices_nonzero(pa.compute.is_in(classes, pa.array(blank, pa.string()))).to_pylist():
        reasons.setdefault(first + row, f"column {column!r}: no label")
    return classes


def _floats(column: pa.Array, name: str, first: int, reasons: dict[int, str]) -> pa.Array:
    """`column` as float64; notes in `reasons` the rows that aren't finite numbers, counted from `first`."""
    try:
        numbers = column.cast(pa.float64()).fill_null(math.nan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.array([_float(value) for value in column.to_pylist()], pa.float64())
    for row in np.flatnonzero(~(np.abs(np.from_dlpack(numbers)) <= _LARGEST)).tolist():  # NaN isn't, either
        reasons.setdefault(first + row, f"column {name!r}: {column[row].as_py()!r} is not a finite number")
    return numbers


def _float(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _none(name: str, reason: str, columns: dict[str, pa.DataType]) -> Rows:
    return Rows([], pa.schema(columns).empty_table(), [{"name": name, "reason": reason}])


READERS: dict[str, Reader] = {
    "text": read_text,
    "image_folder": read_image,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}
