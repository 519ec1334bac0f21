"""What a reader makes of a piece of a raw file: samples, and what had to be set aside."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.ingest.quarantine import Aside


@dataclass(frozen=True)
class Rows:
    """`ids` name the samples; `table` has their columns; `quarantined` are dicts with name and reason, and `rows` where
    an entry stands for another number of samples than 1. Each row of a file is in one of its pieces, kept or set aside;
    there may be pieces without samples.

    `content`, looked at where duplicates are looked for (`curate.deduplicate`; None: what `table` has is all that the
    file holds), is an Arrow array of type binary(16), without nulls: a
    digest for each sample of all that the file holds of it, before features are chosen. Of a CSV record's or a JSONL
    line's bytes without the line end, of all columns of a Parquet row, of a whole file's bytes; of tables with the
    columns' names, where some are no features. Equal ones have equal digests in every file of that kind, on every
    machine; forged collisions are not kept out.
    """

    ids: list[str]
    table: pa.Table
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    content: pa.FixedSizeBinaryArray | None = None

    @classmethod
    def none(cls, aside: Aside) -> "Rows":
        """No samples, and what was set aside since it was told last."""
        return cls([], pa.table({}), aside.new())
