"""Parquet: a row a sample."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.columns import Columns, chosen, typed
from pipelines.ingest.readers.parquet_pages import claimed
from pipelines.ingest.readers.table import Table
from pipelines.ingest.rows import Rows
from pipelines.params import Curate
from storage.errors import DataError

_BATCH = 65_536  # rows at a time
_NAME = 100  # bytes of memory for the name of a row
_TIMES = 50  # its own size: what a file may always take
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)  # OSError: a page that does not unpack

Batch = tuple[pa.RecordBatch, dict[int, str], pa.Array | None]


def read_parquet(name: str, data: bytes, params: Curate) -> Rows:
    """A row is named by its number, from 1 on. Of a damaged file those row groups are kept that can be read; one that
    can't counts its rows, and so does a file that would take too much memory."""
    aside = Aside(params.max_quarantined)
    try:
        file = _opened(data)
        names = file.schema_arrow.names
    except _DAMAGED as error:
        raise uncountable(name, f"not a Parquet file: {error}") from error
    with file:
        columns = chosen(name, names, params)
        _check_types(name, columns, file.schema_arrow)
        table = Table(name, columns, aside)
        wanted = None if params.deduplicate else columns.needed
        if reason := _too_large(file, data, wanted, params.max_unpacked_mb):
            aside.add(name, reason, file.metadata.num_rows)
            return table.rows(params.deduplicate)
        first = 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                batches = _batches(file, group, wanted, columns, bool(params.features))
            except _DAMAGED as error:
                aside.add(f"{name}:{first}", f"a row group that cannot be read: {error}", rows)
                batches = []
            for number, (batch, reasons, digests) in enumerate(batches):
                lines = np.arange(len(batch)) + first + number * _BATCH
                table.add(batch, lines, {row: (reason, 1) for row, reason in reasons.items()}, digests)
            first += rows
        return table.rows(params.deduplicate)


def _opened(data: bytes) -> pyarrow.parquet.ParquetFile:
    """Texts are read as indices of those that differ, as they lie in the file: a long one may be named many times."""
    with pyarrow.parquet.ParquetFile(pa.BufferReader(data)) as file:
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pyarrow.parquet.ParquetFile(pa.BufferReader(data), read_dictionary=texts, pre_buffer=False)


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


def _too_large(file: pyarrow.parquet.ParquetFile, data: bytes, wanted: list[str] | None, limit: float) -> str | None:
    """Why the file's rows would take too much memory, by what its footer and its pages say."""
    metadata, schema = file.metadata, file.schema
    roots = set(file.schema_arrow.names if wanted is None else wanted)
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
            if packed > len(data):
                return f"its columns have {packed:,} bytes, the file {len(data):,}: it is damaged"
            pages = claimed(data, start, start + chunk.total_compressed_size)
            needs += max(chunk.total_uncompressed_size, pages, chunk.num_values * width)
    most = max(limit * (1 << 20), _TIMES * len(data))
    if needs <= most:
        return None
    return (
        f"its {metadata.num_rows:,} rows would take {needs / (1 << 20):,.0f} MiB of memory, more than "
        f"{most / (1 << 20):,.0f}: cut it into smaller files, or raise curate.max_unpacked_mb"
    )


def _batches(
    file: pyarrow.parquet.ParquetFile, group: int, wanted: list[str] | None, columns: Columns, by_name: bool
) -> list[Batch]:
    """All rows of a row group, _BATCH at a time. `by_name`: some columns are no features, which are told by name."""
    batches = list[Batch]()
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=wanted, use_threads=False):
        names = batch.schema.names
        rows, reasons = typed(columns, [batch.column(names.index(name)) for name in columns.needed])
        digests = row_digests.of_rows(batch) if wanted is None else None
        if digests is not None and by_name:
            digests = row_digests.below(names, digests)
        batches.append((rows, reasons, digests))
    told, found = file.metadata.row_group(group).num_rows, sum(len(batch) for batch, _, _ in batches)
    if found != told:
        raise OSError(f"it holds {found} rows, the file's footer says {told}")
    return batches
