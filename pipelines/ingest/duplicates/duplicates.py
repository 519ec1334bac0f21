"""Duplicates: which of equal samples are kept, over the whole data set, and what was left out for which.

The first is kept, by the order of files and lines. Equal samples lie in objects of one split, which keep that order; so
objects are gone through in the order of the manifest. Digests are compared a part at a time.

An entry of the list is {"name": what was left out, "of": what was kept}, by the names of samples. Of a file's rows the
first in each split are named, and {"name": the file, "more": 4900} says how many more there were.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from pipelines.ingest.curated import CONTENT, ID, read_column
from pipelines.ingest.duplicates.content import Digests, from_arrow
from storage.lake import Zone

NAMED = 100  # rows of a file in a split
_AT_ONCE = 16 << 20  # rows that are compared at a time, in about 1 GiB
_READERS = 8  # objects that are read at a time

Entry = dict[str, Any]
Records = Sequence[dict[str, Any]]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Duplicates:
    """`left_out` and, as long, for each the row that is `kept` for it: numbers of rows, which are counted through all
    objects, of which object i begins at starts[i] (and ends at starts[i + 1])."""

    starts: Ints
    left_out: Ints
    kept: Ints

    def of(self, number: int) -> tuple[Ints, Ints]:
        """The rows of object `number` that are left out, counted in the object, and those that are kept for them."""
        first, last = np.searchsorted(self.left_out, self.starts[number : number + 2])
        return self.left_out[first:last] - self.starts[number], self.kept[first:last]


def find(zone: Zone, records: Records) -> Duplicates:
    """Among all rows of the objects `records` of `zone`."""
    rows = np.array([json.loads(record["stats"])["rows"] for record in records], np.int64)
    starts = np.append(0, np.cumsum(rows))
    parts = max(1, -(-int(starts[-1]) // _AT_ONCE))
    found = [_equal(*_part(zone, records, starts, part, parts)) for part in range(parts)]
    left_out, kept = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(left_out)
    return Duplicates(starts, left_out[order], kept[order])


def _part(zone: Zone, records: Records, starts: Ints, part: int, parts: int) -> tuple[Digests, Ints]:
    """The digests that fall into a part, and the numbers of their rows."""

    def chosen(number: int) -> tuple[Digests, Ints]:
        digests = from_arrow(read_column(zone, records[number], CONTENT))
        where = np.flatnonzero(digests[:, 0] % np.uint64(parts) == part)
        return digests[where], where + starts[number]

    with ThreadPoolExecutor(_READERS, thread_name_prefix="shardline-duplicates") as pool:
        digests, rows = zip(*pool.map(chosen, range(len(records))), strict=True)
    return np.concatenate(digests), np.concatenate(rows)


def _equal(digests: Digests, rows: Ints) -> tuple[Ints, Ints]:
    """Of `rows` (rising) those whose digests a former one has, and the first that has them."""
    order = np.argsort(digests[:, 0], kind="stable")
    same = np.diff(digests[order, 0]) == 0
    alike = order[(np.append(same, False) | np.append(False, same))[: len(order)]]  # by half of the digest
    alike = alike[np.lexsort((alike, digests[alike, 1], digests[alike, 0]))]
    equal = np.append(False, (np.diff(digests[alike], axis=0) == 0).all(axis=1))[: len(alike)]
    first = np.maximum.accumulate(np.where(equal, 0, np.arange(len(alike))))
    return rows[alike[equal]], rows[alike[first[equal]]]


def pack(rows: int, left_out: Ints) -> bytes | None:
    """Which of an object's `rows` are left out, in few bytes: their numbers, or a bit a row. None: none are."""
    if not len(left_out):
        return None
    numbers = left_out.astype("<u4").tobytes()
    if len(numbers) < -(-rows // 8):
        return numbers
    bits = np.zeros(rows, bool)
    bits[left_out] = True
    return np.packbits(bits).tobytes()


def kept_rows(rows: int, packed: bytes | None) -> Ints:
    """The rows that are not left out, rising. Raises ValueError where `packed` is not of so many rows."""
    kept, bits = np.ones(rows, bool), -(-rows // 8)
    if packed is not None and len(packed) < bits:
        numbers = np.frombuffer(packed, "<u4")
        if (numbers >= rows).any():
            raise ValueError(f"row {numbers.max()} of {rows} is left out")
        kept[numbers] = False
    elif packed is not None:
        if len(packed) > bits:
            raise ValueError(f"{len(packed)} bytes say which of {rows} rows are left out")
        kept = ~np.unpackbits(np.frombuffer(packed, np.uint8), count=rows).astype(bool)
    return np.flatnonzero(kept)


def listed(zone: Zone, records: Records, found: Duplicates, by_line: Sequence[bool]) -> Iterator[Entry]:
    """The entries, by objects. `by_line`: of which objects the names of samples end in :<line>."""
    some = _with_some(found, found.left_out)
    named = [_named(zone, records[number], found.of(number), by_line[number]) for number in some]
    kept = np.unique(np.concatenate([rows for _, rows, _ in named])) if named else np.zeros(0, np.int64)
    names = dict[int, str]()
    for number in _with_some(found, kept):
        rows = kept[slice(*np.searchsorted(kept, found.starts[number : number + 2]))]
        ids = read_column(zone, records[number], ID).take(pa.array(rows - found.starts[number]))
        names |= zip(rows.tolist(), ids.to_pylist(), strict=True)
    for ids, rows, more in named:
        yield from ({"name": name, "of": names[row]} for name, row in zip(ids, rows.tolist(), strict=True))
        yield from ({"name": file, "more": count} for file, count in more.items())


def _with_some(found: Duplicates, rows: Ints) -> list[int]:
    """The objects in which some of `rows` lie."""
    return [*np.unique(np.searchsorted(found.starts, rows, side="right") - 1).tolist()]


def _named(
    zone: Zone, record: dict[str, Any], found: tuple[Ints, Ints], by_line: bool
) -> tuple[list[str], Ints, dict[str, int]]:
    """Names of the first rows of each file that are left out, the rows that are kept for these, and file → how many
    more there are."""
    left_out, kept = found
    ids = read_column(zone, record, ID).take(pa.array(left_out))
    files = pa.compute.replace_substring_regex(ids, r":\d+$", "") if by_line else ids
    encoded = pa.compute.dictionary_encode(files).combine_chunks()
    numbers = encoded.indices.to_numpy()  # rising, since a file's rows lie together
    _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    place = np.arange(len(numbers)) - first[numbers]
    shown = np.flatnonzero(place < NAMED)
    names = encoded.dictionary.to_pylist()
    more = {names[number]: int(count) - NAMED for number, count in enumerate(counts) if count > NAMED}
    return ids.take(pa.array(shown)).to_pylist(), kept[shown], more
