"""Curated objects: Parquet files of samples, a column `sample_id` beside theirs, and `sample_content` where duplicates
are looked for. They are written a block of rows at a time, and read whole or by single columns.
"""

import io
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import SpooledTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from typing_extensions import Buffer

from storage.atomic import storage_errors
from storage.errors import DataError, FormatError
from storage.lake import Zone

ID = "sample_id"  # names a sample
CONTENT = "sample_content"  # of 128 bits; rows where it is equal are duplicates
OWN = (ID, CONTENT)  # no feature may have these names
TOGETHER = 64 << 20  # bytes of rows that are written at once, and of a file that stays in memory
_CHUNK = 4 << 20  # bytes copied at a time


class Writer:
    """Takes the rows of one object, block by block, and publishes it in `zone`. Its memory doesn't grow with them."""

    def __init__(self, zone: Zone) -> None:
        self.zone, self.rows = zone, 0
        self._schema: pa.Schema | None = None
        self._labels: set[str] = set()
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        with storage_errors(zone.folder):
            zone.folder.mkdir(parents=True, exist_ok=True)
        self._file = SpooledTemporaryFile(TOGETHER, dir=str(zone.folder))  # noqa: SIM115 - `close` closes it
        self._parquet: pyarrow.parquet.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows. Raises DataError where their columns are others than before."""
        if self._schema is None:
            self._schema = table.schema
        elif table.schema != self._schema:
            raise DataError(
                f"curate: the files' columns differ: {_listed(self._schema)}; {_listed(table.schema)}. Name them in "
                "curate.features."
            )
        if "label" in table.column_names and table["label"].type == pa.string():
            self._labels.update(pa.compute.unique(table["label"]).to_pylist())
        self.rows += table.num_rows
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= TOGETHER:
            self._flush()

    def publish(self, kind: str) -> dict[str, Any]:
        """Store the object. Its record says where it lies, its rows, and in `stats` what others must know before they
        read it: the rows that it has whatever is left out of them, the classes, and the features of a table. There must
        be rows."""
        self._flush()
        assert self._parquet is not None
        assert self._schema is not None
        with storage_errors(self.zone.folder):
            self._parquet.close()
        self._file.seek(0)
        stored = self.zone.publish_parts(iter(lambda: self._file.read(_CHUNK), b""), ".parquet")
        stats: dict[str, Any] = {"rows": self.rows} | ({"labels": sorted(self._labels)} if self._labels else {})
        if kind == "table":
            stats["features"] = [name for name in self._schema.names if name not in (*OWN, "label")]
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": self.rows}
        return {**about, "stats": json.dumps(stats, sort_keys=True)}

    def close(self) -> None:
        """Let go of the temporary file."""
        self._file.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._bytes = [], 0
        with storage_errors(self.zone.folder):
            if self._parquet is None:
                settings = {"compression": "zstd", "write_page_checksum": True}
                self._parquet = pyarrow.parquet.ParquetWriter(self._file, table.schema, **settings)
            self._parquet.write_table(table)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(name for name in schema.names if name not in OWN)


def read_whole(zone: Zone, record: dict[str, Any]) -> pa.Table:
    """The samples of an object, but for CONTENT; its bytes are checked against its digest."""
    with _opened(pa.BufferReader(zone.read(record["path"], record["digest"]))) as file:
        return file.read([name for name in file.schema_arrow.names if name != CONTENT], use_threads=False)


def read_column(zone: Zone, record: dict[str, Any], name: str) -> pa.ChunkedArray:
    """One column of an object, without reading the others. Raises DigestError for a damaged object, FormatError for one
    that has no such column."""
    path = zone.local_path(record["path"])
    try:
        source = pa.memory_map(str(path)) if path else pa.PythonFile(_Remote(zone, record), "r")
        with closing(source), _opened(source) as file:
            if name in file.schema_arrow.names:
                return file.read([name], use_threads=False)[name]
    except (pa.ArrowInvalid, OSError) as error:
        zone.verify(record["path"], record["digest"])
        raise FormatError(f"{zone.describe(record['path'])}: {error}") from error
    raise FormatError(f"{zone.describe(record['path'])}: no column {name!r}. Run `shardline curate` again.")


@contextmanager
def _opened(source: pa.NativeFile) -> Iterator[pyarrow.parquet.ParquetFile]:
    """In this thread alone: Arrow's own threads may let go of the bytes later, and one that does so while the
    interpreter ends takes the process down with it."""
    with pyarrow.parquet.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file:
        yield file


class _Remote(io.RawIOBase):
    """A remote object as a file of which only those ranges are fetched that are read."""

    def __init__(self, zone: Zone, record: dict[str, Any]) -> None:
        self._reader, self._path, self._size, self._at = zone.reader, record["path"], record["bytes"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._size - self._at))]
        if len(view):
            self._reader.read_into(self._path, self._at, view)
        self._at += len(view)
        return len(view)
