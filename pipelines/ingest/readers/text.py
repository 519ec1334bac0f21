"""Text files: a document each."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.formats import foreign
from pipelines.ingest.rows import Rows
from pipelines.params import Curate


def read_text(name: str, file: BinaryIO, params: Curate) -> Iterator[Rows]:
    """One document: the whole file, UTF-8."""
    data = file.read()
    found = foreign(data)
    if reason := found[0] if found else _undecodable(data):
        aside = Aside(params.max_quarantined)
        aside.add(name, reason)
        yield Rows.none(aside)
        return
    ends = pa.array([0, len(data)], pa.int64())
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, ends.buffers()[1], pa.py_buffer(data)])  # no copy
    digest = row_digests.of_file(data) if params.deduplicate else None
    yield Rows([name], pa.table({"text": text}), content=digest)


def _undecodable(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    zero = data.find(b"\0")
    return None if zero < 0 else f"binary: a zero at byte {zero}"
