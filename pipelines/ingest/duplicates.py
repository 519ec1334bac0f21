"""Duplicates: which of equal files, and of equal rows of a table file, are kept, and what was left out for which.

An entry of the list is {"name": what was left out, "of": what was kept}, by the names of files or samples. Of a table
file's rows the first are named, and {"name": the file, "more": 4900} says how many more there were.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from pipelines.ingest.domains import Records
from pipelines.ingest.readers import Rows

NAMED = 100  # rows of a file

Entry = dict[str, Any]
Ints = npt.NDArray[np.int64]


def distinct_files(files: Records) -> tuple[Records, dict[str, list[Entry]]]:
    """The first of the files of each digest, and digest → the entries of the others, where there are any."""
    first: dict[str, dict[str, Any]] = {}
    others: dict[str, list[Entry]] = {}
    for file in files:
        kept = first.setdefault(file["digest"], file)
        if kept is not file:
            others.setdefault(file["digest"], []).append({"name": file["name"], "of": kept["name"]})
    return list(first.values()), others


def distinct_rows(rows: Rows, file: str) -> tuple[Rows, list[Entry]]:
    """The first of the rows of `file` that are equal, and the entries of the others."""
    if not rows.ids:
        return rows, []
    groups = _groups(rows.table)
    before = np.maximum.accumulate(groups)
    first = np.append(True, groups[1:] > before[:-1])
    keep, left_out = np.flatnonzero(first), np.flatnonzero(~first)
    if not len(left_out):
        return rows, []
    kept = keep[groups[left_out[:NAMED]]]  # group g is that of row keep[g]
    pairs = zip(left_out.tolist(), kept.tolist(), strict=False)
    entries: list[Entry] = [{"name": rows.ids[row], "of": rows.ids[other]} for row, other in pairs]
    if len(left_out) > NAMED:
        entries.append({"name": file, "more": len(left_out) - NAMED})
    return Rows([rows.ids[row] for row in keep.tolist()], rows.table.take(pa.array(keep)), rows.quarantined), entries


def _groups(table: pa.Table) -> Ints:
    """Which group of equal rows each row belongs to, int64 [rows]; groups are numbered as they come."""
    groups = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        values = pa.compute.add(column, 0.0) if pa.types.is_floating(column.type) else column  # -0.0 equals 0.0
        numbers = _numbered(values)
        groups = _numbered(pa.chunked_array([pa.array(groups * (int(numbers.max()) + 1) + numbers)]))
        if groups[-1] == len(groups) - 1:
            break  # all differ
    return groups


def _numbered(values: pa.ChunkedArray) -> Ints:
    """Each value's number, where values are numbered as they come."""
    encoded = pa.compute.dictionary_encode(values).combine_chunks()
    return np.from_dlpack(encoded.indices).astype(np.int64)
