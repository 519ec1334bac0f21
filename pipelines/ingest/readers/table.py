"""Typed batches of a table file → its rows."""

import numpy as np
import pyarrow as pa

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers.columns import Columns
from pipelines.ingest.readers.lines import Ints
from pipelines.ingest.rows import Rows


class Table:
    """Collects the rows of a file that are kept, and sets aside the others."""

    def __init__(self, name: str, columns: Columns, aside: Aside) -> None:
        self.name, self.columns, self.aside = name, columns, aside
        self.ids: list[str] = []
        self._parts: list[list[pa.Array]] = [[] for _ in columns.schema]
        self._digests: list[pa.Array] = []

    def add(
        self, batch: pa.RecordBatch, lines: Ints, reasons: dict[int, tuple[str, int]], digests: pa.Array | None
    ) -> None:
        """Rows that begin at `lines`; row → why it is no good, and how many lines that is."""
        for row, (reason, span) in sorted(reasons.items()):
            self.aside.add(f"{self.name}:{lines[row]}", reason, span)
        if reasons:
            keep = np.delete(np.arange(len(batch)), list(reasons))
            batch, lines = batch.take(pa.array(keep)), lines[keep]
            digests = digests.take(pa.array(keep)) if digests is not None else None
        self.ids += [f"{self.name}:{line}" for line in lines.tolist()]
        for parts, column in zip(self._parts, batch.columns, strict=True):
            parts.append(column)
        if digests is not None:
            self._digests.append(digests)

    def rows(self, with_content: bool) -> Rows:
        """All of them; this can be asked once."""
        whole = {}
        for field, parts in zip(self.columns.schema, self._parts, strict=True):
            whole[field.name] = pa.chunked_array(parts, field.type).combine_chunks()
            parts.clear()
        digests = pa.chunked_array(self._digests, pa.binary(16)).combine_chunks() if with_content else None
        return Rows(self.ids, pa.table(whole, self.columns.schema), self.aside.entries, digests)
