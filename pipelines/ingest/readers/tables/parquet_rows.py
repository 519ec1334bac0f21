"""Parquet: a row a sample.

Of a row group either all rows are read or none, so its rows are held back until its end is in sight. Where they are
more than HELD bytes, the group is read to its end once before they are let out, and only then for its rows.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.tables.columns import Columns, chosen, typed
from pipelines.ingest.readers.tables.parquet_pages import claimed
from pipelines.ingest.readers.tables.table import rows_of_batch
from pipelines.ingest.rows import Rows
from pipelines.params import Curate
from storage.errors import DataError

HELD = 64 << 20  # bytes of rows
_BATCH = 65_536  # rows at a time at most,
_TOGETHER = 16 << 20  # and bytes, by what the footer says
_PAGES = 1 << 20  # bytes of a column that are read at a time
_NAME = 100  # bytes of memory for the name of a row
_TIMES = 50  # its own size: what a file may always take
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)  # OSError: a page that does not unpack


def read_parquet(name: str, file: BinaryIO, params: Curate, batch: int = _BATCH, held: int = HELD) -> Iterator[Rows]:
    """A row is named by its number, from 1 on. Of a damaged file those row groups are kept that can be read; one that
    can't counts its rows, and so does a file that would take too much memory. A piece has `batch` rows at most."""
    aside = Aside(params.max_quarantined)
    try:
        parquet = _opened(file)
        names = parquet.schema_arrow.names
    except _DAMAGED as error:
        raise uncountable(name, f"not a Parquet file: {_damage(error)}") from error
    with parquet:
        columns = chosen(name, names, params)
        _check_types(name, columns, parquet.schema_arrow)
        wanted = None if params.deduplicate else columns.needed
        if reason := _too_large(parquet, file, wanted, params.max_unpacked_mb):
            aside.add(name, reason, parquet.metadata.num_rows)
            yield Rows.none(aside)
            return
        first = 1
        for number in range(parquet.num_row_groups):
            group = _Group(parquet, number, wanted, batch)
            yield from _rows(name, group, first, columns, params, aside, held)
            first += group.told
    yield Rows.none(aside)


def _rows(
    name: str, group: "_Group", first: int, columns: Columns, params: Curate, aside: Aside, held: int
) -> Iterator[Rows]:
    """Those of a row group, which begins at row `first`, or none, where all of it is set aside."""
    waiting, size, sound = list[_Typed](), 0, False
    batches = group.batches()
    try:
        for batch in batches:
            waiting.append(_typed(batch, columns, params))
            size += waiting[-1].bytes
            if size > held:
                group.check()
                sound = True
                break
    except _DAMAGED as error:
        aside.add(f"{name}:{first}", f"a row group that cannot be read: {_damage(error)}", group.told)
        yield Rows.none(aside)
        return
    for typed_rows in waiting:
        yield typed_rows.rows(name, first, aside)
        first += len(typed_rows.batch)
    waiting.clear()
    for batch in batches if sound else ():
        typed_rows = _typed(batch, columns, params)
        yield typed_rows.rows(name, first, aside)
        first += len(batch)


@dataclass(frozen=True)
class _Typed:
    """Rows, why some are no good, and the digests of all."""

    batch: pa.RecordBatch
    reasons: dict[int, str]
    digests: pa.FixedSizeBinaryArray | None

    @property
    def bytes(self) -> int:
        return int(self.batch.nbytes) + 16 * len(self.batch) + _NAME * len(self.reasons)

    def rows(self, name: str, first: int, aside: Aside) -> Rows:
        """The rows, the first of which is row `first`."""
        wrong = {row: (reason, 1) for row, reason in self.reasons.items()}
        return rows_of_batch(name, self.batch, np.arange(len(self.batch)) + first, wrong, self.digests, aside)


def _typed(batch: pa.RecordBatch, columns: Columns, params: Curate) -> _Typed:
    names = batch.schema.names
    rows, reasons = typed(columns, [batch.column(names.index(name)) for name in columns.needed])
    digests = row_digests.of_rows(batch) if params.deduplicate else None
    if digests is not None and params.features:  # else all columns are features, which are compared by name
        digests = row_digests.below(names, digests)
    return _Typed(rows, reasons, digests)


class _Group:
    """Row group `number` of a file, of which the columns `wanted` are read (None: all)."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, number: int, wanted: list[str] | None, rows: int) -> None:
        group = file.metadata.row_group(number)
        self.told = group.num_rows
        self._file, self._number, self._wanted = file, number, wanted
        self._rows = max(1, min(rows, self.told * _TOGETHER // max(group.total_byte_size, 1)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of its rows. Raises one of _DAMAGED, at the latest after them."""
        found = 0
        for batch in self._file.iter_batches(self._rows, [self._number], columns=self._wanted, use_threads=False):
            yield batch
            found += len(batch)
        if found != self.told:
            raise OSError(f"it holds {found} rows, the file's footer says {self.told}")

    def check(self) -> None:
        """Read it to its end. Raises one of _DAMAGED."""
        for _ in self.batches():
            pass


def _opened(file: BinaryIO) -> pyarrow.parquet.ParquetFile:
    """Texts are read as indices of those that differ, as they lie in the file: a long one may be named many times."""
    whole = file.getvalue() if isinstance(file, io.BytesIO) else None
    source = pa.PythonFile(file, "r") if whole is None else pa.BufferReader(whole)
    with pyarrow.parquet.ParquetFile(source) as opened:
        leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    buffer = _PAGES if whole is None else 0
    return pyarrow.parquet.ParquetFile(source, read_dictionary=texts, pre_buffer=False, buffer_size=buffer)


def _damage(error: Exception) -> Exception:
    """`error`, where the file's bytes are at fault. Raises it where the system could not read them."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return error


def _check_types(name: str, columns: Columns, schema: pa.Schema) -> None:
    """Raise DataError, which names all columns that hold no numbers, and a label that names no classes."""
    kinds = {field.name: _plain(field.type) for field in schema}
    problems = [
        f"column {feature!r} holds {kinds[feature]}" for feature in columns.features if not _is_number(kinds[feature])
    ]
    found = [f"{name}: {'; '.join(problems)}: no numbers. Leave them out with curate.features."] if problems else []
    label = kinds[columns.label]
    if not _is_number(label):
        found.append(
            f"{name}: the label column {columns.label!r} holds {label}, which names no classes. Set curate.label to a "
            "column of text, integers or booleans, or curate.target: value for a number to regress."
        )
    if found:
        raise DataError("\n".join(found))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    """Or text, which may hold numbers."""
    types = pa.types
    return any(
        check(kind)
        for check in (
            types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null,
            types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
        )
    )  # fmt: skip


def _too_large(
    parquet: pyarrow.parquet.ParquetFile, file: BinaryIO, wanted: list[str] | None, limit: float
) -> str | None:
    """Why the file's rows would take too much memory, by what its footer and its pages say."""
    metadata, schema, size = parquet.metadata, parquet.schema, file.seek(0, os.SEEK_END)
    roots = set(parquet.schema_arrow.names if wanted is None else wanted)
    leaves = [n for n in range(metadata.num_columns) if schema.column(n).path.split(".")[0] in roots
              or schema.column(n).path in roots]  # fmt: skip
    needs, packed = metadata.num_rows * _NAME, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for leaf in leaves:
            chunk = group.column(leaf)
            width = max(8, schema.column(leaf).length or 0)
            starts = (chunk.data_page_offset, chunk.dictionary_page_offset or 0)
            start = min(place for place in starts if place > 0) if max(starts) > 0 else 0
            packed += max(0, chunk.total_compressed_size)
            if packed > size:
                return f"its columns have {packed:,} bytes, the file {size:,}: it is damaged"
            pages = claimed(file, start, start + chunk.total_compressed_size)
            needs += max(chunk.total_uncompressed_size, pages, chunk.num_values * width)
    most = max(limit * (1 << 20), _TIMES * size)
    if needs <= most:
        return None
    return (
        f"its {metadata.num_rows:,} rows would take {needs / (1 << 20):,.0f} MiB of memory, more than "
        f"{most / (1 << 20):,.0f}: cut it into smaller files, or raise curate.max_unpacked_mb"
    )
