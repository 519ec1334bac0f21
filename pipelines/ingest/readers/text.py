"""Text files: a document each."""

import pyarrow as pa

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.formats import foreign
from pipelines.ingest.rows import Rows
from pipelines.params import Curate


def read_text(name: str, data: bytes, params: Curate) -> Rows:
    """One document: the whole file, UTF-8."""
    found = foreign(data)
    if reason := found[0] if found else _undecodable(data):
        aside = Aside(params.max_quarantined)
        aside.add(name, reason)
        return Rows([], pa.schema({"text": pa.large_string()}).empty_table(), aside.entries)
    ends = pa.array([0, len(data)], pa.int64())
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, ends.buffers()[1], pa.py_buffer(data)])  # no copy
    digest = row_digests.of_file(data) if params.deduplicate else None
    return Rows([name], pa.table({"text": text}), content=digest)


def _undecodable(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    zero = data.find(b"\0")
    return None if zero < 0 else f"binary: a zero at byte {zero}"
