"""A digest for each sample of all that its file holds of it, whole columns at a time.

Two lanes of 64 bits. Each word (8 bytes, or one value of a column) is mixed with its place, and a sample's words are
added up: sums of random functions, so two samples are taken for equal by chance once in 2^128 pairs. Whoever wants to
can forge two that are. The mixing is that of SplitMix64 and MurmurHash3, https://doi.org/10.1145/2660193.2660195.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipelines.ingest.readers.lines import Ints
from storage.digest import digest_bytes, digest_json

Words = NDArray[np.uint64]
Lanes = tuple[Words, Words]

_AT_ONCE = 1 << 15  # words, so that they stay in the processor's cache
_PLACE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_FACTORS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_NULL = np.uint64(0x2545F4914F6CDD1D)
_ALL = np.uint64(2**64 - 1)


def of_file(data: bytes) -> pa.FixedSizeBinaryArray:
    """Of one sample, which is the whole file: the first half of its BLAKE3."""
    return pa.array([bytes.fromhex(digest_bytes(data))[:16]], pa.binary(16))


def of_spans(data: Buffer, starts: Ints, ends: Ints) -> pa.FixedSizeBinaryArray:
    """Of data[starts[i]:ends[i]], binary(16) [spans]."""
    return _stored([_of_spans(data, starts, ends)])


def of_rows(batch: pa.RecordBatch) -> pa.FixedSizeBinaryArray:
    """Of the rows of a batch, all of its columns in their order, binary(16) [rows]. Integers and floats of different
    widths are equal where their values are."""
    return _stored([_of_fields(batch.columns, len(batch))])


def of_table(table: pa.Table) -> pa.ChunkedArray:
    """The same of a table's rows."""
    return pa.chunked_array([of_rows(batch) for batch in table.to_batches()], pa.binary(16))


def below(header: Sequence[str], digests: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
    """The same of rows below such a header: equal rows of columns with other names are others."""
    names = np.frombuffer(bytes.fromhex(digest_json(list(header)))[:16], "<u8")
    words = np.frombuffer(digests.buffers()[1], "<u8").reshape(-1, 2)[digests.offset :][: len(digests)] ^ names
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(words)])


def _stored(parts: list[Lanes]) -> pa.FixedSizeBinaryArray:
    words = np.concatenate([np.stack(lanes, axis=1) for lanes in parts]) if parts else np.empty((0, 2), np.uint64)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(words.astype("<u8"))])


def _mixed(words: Words, lane: int) -> Words:
    """A random function of each word, in place."""
    one, other = _FACTORS[lane]
    words ^= words >> np.uint64(33)
    words *= np.uint64(one)
    words ^= words >> np.uint64(29)
    words *= np.uint64(other)
    words ^= words >> np.uint64(32)
    return words


def _placed(lanes: Lanes, places: Words) -> Lanes:
    """Random functions of words and of their places, which count from 1."""
    return _mixed(lanes[0] + places * _PLACE[0], 0), _mixed(lanes[1] + places * _PLACE[1], 1)


def _finished(lanes: Lanes, lengths: Words) -> Lanes:
    first = _mixed(lanes[0] + lengths * _PLACE[1], 0)
    return first, _mixed(lanes[1] + first, 1)


def _places(counts: Ints) -> Ints:
    """Of runs of `counts` words, each word's place in its run, from 0 on."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _summed(lanes: Lanes, counts: Ints, places: Ints) -> Lanes:
    """Of runs of `counts` words, none of them empty, the sum of each."""
    firsts = np.cumsum(counts) - counts
    placed = _placed(lanes, (places + 1).view(np.uint64))
    return np.add.reduceat(placed[0], firsts), np.add.reduceat(placed[1], firsts)


def _of_spans(data: Buffer, starts: Ints, ends: Ints) -> Lanes:
    words = (ends - starts + 7) >> 3  # NumPy divides slowly
    parts = [_of_some(data, starts[part], ends[part]) for part in _cut(words)]
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _cut(words: Ints) -> Iterator[slice]:
    """Runs of about _AT_ONCE words."""
    most = np.arange(0, int(words.sum()) + len(words) + _AT_ONCE, _AT_ONCE)
    at = np.searchsorted(np.cumsum(words + 1), most, side="right").tolist()
    return (slice(first, last) for first, last in pairwise(at) if last > first)


def _of_some(data: Buffer, starts: Ints, ends: Ints) -> Lanes:
    begin = int(starts.min())
    window = np.zeros(int(ends.max()) - begin + 8, np.uint8)
    if len(window) > 8:
        window[:-8] = np.frombuffer(memoryview(data), np.uint8, len(window) - 8, begin)
    words = np.ndarray((len(window) - 7,), "<u8", window, strides=(1,))  # one at each byte
    lengths = ends - starts
    counts = np.maximum((lengths + 7) >> 3, 1)
    places = _places(counts)
    found = words[np.repeat(starts - begin, counts) + 8 * places]
    unused = (64 * counts - 8 * lengths).astype(np.uint64)  # bits of the last word
    kept = np.where(unused < 64, _ALL >> np.minimum(unused, np.uint64(63)), np.uint64(0))
    found[np.cumsum(counts) - 1] &= kept
    return _finished(_summed((found, found), counts, places), lengths.astype(np.uint64))


def _of_fields(columns: list[pa.Array], rows: int) -> Lanes:
    """Of rows, or of structs."""
    sums = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
    for place, column in enumerate(columns, 1):
        first, second = _values(column)
        for at in range(0, rows, _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            placed = _placed((first[part], second[part]), np.array([place], np.uint64))
            sums[0][part] += placed[0]
            sums[1][part] += placed[1]
    return _finished(sums, np.array([len(columns)], np.uint64))


def _values(column: pa.Array) -> Lanes:
    """Words of each value; those of a null are of no value."""
    if not column.null_count:
        return _present(column)
    lanes, none = _present(column), np.asarray(column.is_null())
    return np.where(none, _NULL, lanes[0]), np.where(none, ~_NULL, lanes[1])


def _present(column: pa.Array) -> Lanes:
    kind = column.type
    types = pa.types
    if types.is_dictionary(kind):
        known, indices = _values(column.dictionary), np.asarray(column.indices.fill_null(0)).astype(np.int64)
        return (known[0][indices], known[1][indices]) if len(known[0]) else _alike(np.zeros(len(column), np.uint64))
    if types.is_struct(kind):
        return _of_fields(column.flatten(), len(column))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind) or types.is_fixed_size_list(kind):
        return _of_lists(column)
    if types.is_floating(kind):
        return _alike(np.asarray(column.cast(pa.float64()).fill_null(0.0)).view(np.uint64))
    if types.is_uint64(kind):
        return _alike(np.asarray(column.fill_null(0)))
    if types.is_integer(kind) or types.is_boolean(kind):
        return _alike(np.asarray(column.cast(pa.int64()).fill_null(0)).view(np.uint64))
    return _of_texts(column)


def _alike(words: Words) -> Lanes:
    return words, words


def _of_lists(column: pa.Array) -> Lanes:
    lengths = np.asarray(pyarrow.compute.list_value_length(column).fill_null(0)).astype(np.int64)
    sums = np.zeros(len(column), np.uint64), np.zeros(len(column), np.uint64)
    filled = np.flatnonzero(lengths)
    if len(filled):
        flat = column.flatten()  # without what lies under nulls
        sums[0][filled], sums[1][filled] = _summed(_values(flat), lengths[filled], _places(lengths[filled]))
    return _finished(sums, lengths.astype(np.uint64))


def _of_texts(column: pa.Array) -> Lanes:
    """Of strings and bytes; of everything else (decimals, dates, …) by its text."""
    kind = column.type
    if not any(check(kind) for check in (pa.types.is_binary, pa.types.is_string, pa.types.is_large_binary,
                                         pa.types.is_large_string)):  # fmt: skip
        column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.large_string())
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    at = np.frombuffer(offsets, np.int64, len(column) + 1, 8 * column.offset)
    return _of_spans(data or b"", at[:-1], at[1:])
