"""Readers' pieces put together: what a whole file comes to."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipelines.ingest.rows import Rows


def joined(pieces: Iterator[Rows]) -> Rows:
    """All pieces of a file as one."""
    parts = list(pieces)
    tables = [part.table for part in parts if part.ids] or [parts[0].table if parts else pa.table({})]
    digests = [part.content for part in parts if part.content is not None]
    return Rows(
        [name for part in parts for name in part.ids],
        pa.concat_tables(tables).combine_chunks(),
        [entry for part in parts for entry in part.quarantined],
        pa.concat_arrays(digests) if digests else None if tables[0].num_rows else pa.array([], pa.binary(16)),
    )


def whole(read: Callable[..., Iterator[Rows]]) -> Callable[..., Rows]:
    """A reader of files as one of bytes, of which it makes one piece."""

    def of_bytes(name: str, data: bytes, *settings: Any, **more: Any) -> Rows:
        return joined(read(name, io.BytesIO(data), *settings, **more))

    return of_bytes
