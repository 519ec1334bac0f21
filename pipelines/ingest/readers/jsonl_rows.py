"""JSON Lines: a document a line."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.formats import foreign
from pipelines.ingest.readers.lines import BOM, Ints, line_ends, whole_crlf
from pipelines.ingest.rows import Rows
from pipelines.params import Curate

_BLOCK = 1 << 20
_SCHEMA = pa.schema({"text": pa.large_string()})


def read_jsonl(name: str, data: bytes, params: Curate, block: int = _BLOCK) -> Rows:
    """The field `curate.text_field` of each line, which is a JSON object."""
    aside = Aside(params.max_quarantined)
    if found := foreign(data):
        reason, lines = found
        if lines is None:
            raise uncountable(name, reason)
        aside.add(name, reason, lines)
        return Rows([], _SCHEMA.empty_table(), aside.entries)
    ids, texts = list[str](), list[pa.Array]()
    digests = list[pa.FixedSizeBinaryArray]()
    start, line = len(BOM) if data.startswith(BOM) else 0, 1
    while start < len(data):
        starts, ends, after = _lines(data, start, block)
        documents, kept = _texts(name, data, starts, ends, line, params.text_field, aside)
        texts.append(pa.array(documents, pa.large_string()))
        ids += [f"{name}:{line + row}" for row in kept]
        if params.deduplicate:
            rows = np.array(kept, np.int64)
            digests.append(row_digests.of_spans(data, starts[rows], ends[rows]))
        start, line = after, line + len(starts)
    table = pa.table({"text": pa.chunked_array(texts, pa.large_string())})
    digest = pa.chunked_array(digests, pa.binary(16)).combine_chunks() if params.deduplicate else None
    return Rows(ids, table, aside.entries, digest)


def _lines(data: bytes, start: int, size: int) -> tuple[Ints, Ints, int]:
    """Starts and ends of the lines of a block, and where the next block starts."""
    while True:
        stop = whole_crlf(data, start + size)
        ends, after = line_ends(data, start, stop)
        if len(ends):
            return np.concatenate([[start], after[:-1]]), ends, int(after[-1])
        size *= 4


def _texts(
    name: str, data: bytes, starts: Ints, ends: Ints, line: int, field: str, aside: Aside
) -> tuple[list[str], list[int]]:
    """The documents and which lines they are; blank lines are none."""
    texts, kept = list[str](), list[int]()
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if not (text := data[start:end]).strip():
            continue
        try:
            document = _document(text, field)
        except (ValueError, RecursionError) as error:
            aside.add(f"{name}:{line + row}", f"{type(error).__name__}: {error}")
            continue
        texts.append(document)
        kept.append(row)
    return texts, kept


def _document(line: bytes, field: str) -> str:
    """Raises ValueError for what is no object with such a text, RecursionError for one that is nested too deeply."""
    if line.lstrip().startswith(b"["):
        raise ValueError("a JSON array begins, where each line should be an object: convert it (jq -c '.[]')")
    found: Any = json.loads(line.decode())
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, where each line should be an object")
    if field not in found:
        raise ValueError(f"no field {field!r} (curate.text_field)")
    text = found[field]
    if not isinstance(text, str):
        raise ValueError(f"{field!r} is {type(text).__name__}, not a string")
    text.encode()  # a lone surrogate is no text
    return text
