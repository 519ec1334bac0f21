"""JSON Lines: a document a line."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.formats import is_text
from pipelines.ingest.readers.lines import Ints, line_ends, whole_crlf
from pipelines.ingest.readers.lookahead import AHEAD, Lookahead, skip_mark
from pipelines.ingest.rows import Rows
from pipelines.params import Curate

_BLOCK = 1 << 20


def read_jsonl(name: str, file: BinaryIO, params: Curate, block: int | None = None) -> Iterator[Rows]:
    """The field `curate.text_field` of each line, which is a JSON object. A piece has the lines of about `block` bytes
    (None: 1 MiB), or one that is longer."""
    aside, lookahead = Aside(params.max_quarantined), Lookahead(file, block or AHEAD)
    if not is_text(name, lookahead, aside):
        yield Rows.none(aside)
        return
    skip_mark(lookahead)
    line = 1
    while lookahead.more():
        starts, ends = _lines(lookahead, block or _BLOCK)
        documents, kept = _texts(name, lookahead.data, starts, ends, line, params.text_field, aside)
        rows = np.array(kept, np.int64)
        digests = row_digests.of_spans(lookahead.data, starts[rows], ends[rows]) if params.deduplicate else None
        table = pa.table({"text": pa.array(documents, pa.large_string())})
        yield Rows([f"{name}:{line + row}" for row in kept], table, aside.new(), digests)
        line += len(starts)


def _lines(lookahead: Lookahead, size: int) -> tuple[Ints, Ints]:
    """Starts and ends of the lines of a block, behind which `lookahead` goes; their bytes stay in its data."""
    while True:
        lookahead.need(size + 2)  # so that `stop` is the end of the data at the end of the file alone
        data, start = lookahead.data, lookahead.start
        stop = whole_crlf(data, start + size)
        ends, after = line_ends(data, start, stop)
        if len(ends):
            lookahead.start = int(after[-1])
            return np.concatenate([[start], after[:-1]]), ends
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
