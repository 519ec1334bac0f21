"""A typed batch of a table file → its rows."""

import numpy as np
import pyarrow as pa

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers.lines import Ints
from pipelines.ingest.rows import Rows


def rows_of_batch(
    name: str,
    batch: pa.RecordBatch,
    lines: Ints,
    wrong: dict[int, tuple[str, int]],
    digests: pa.FixedSizeBinaryArray | None,
    aside: Aside,
) -> Rows:
    """The rows of file `name` that begin at `lines`, without those that are `wrong` (row → why, and how many lines that
    is), which are set aside."""
    for row, (reason, span) in sorted(wrong.items()):
        aside.add(f"{name}:{lines[row]}", reason, span)
    if wrong:
        keep = np.delete(np.arange(len(batch)), list(wrong))
        batch, lines = batch.take(pa.array(keep)), lines[keep]
        digests = digests.take(pa.array(keep)) if digests is not None else None
    ids = [f"{name}:{line}" for line in lines.tolist()]
    return Rows(ids, pa.Table.from_batches([batch]), aside.new(), digests)
