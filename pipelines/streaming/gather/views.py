"""Rows from anywhere in this process's memory, laid end to end by Arrow.

Arrow's layout of views (`binary_view`, "Variable-size Binary View Layout" of the Arrow columnar format) says of each
row how long it is and where in which buffer it begins, and a cast to `large_binary` lays the rows end to end: one call
for any number of rows, a memcpy each, without the interpreter's lock. So several threads may copy at once.

The callers vouch for the addresses: of rows inside shards that stay open meanwhile.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.streaming.arrays import Ints

Bytes = npt.NDArray[np.uint8]

LONGEST = (1 << 31) - 1  # bytes of a row: a view's length is an int32

_INLINE = 12  # bytes up to which a view holds the row itself
_SPAN = 30  # a view's place is an int32 too: memory is seen as spans of 2 GiB, one from each GiB on
_NEAR = 64  # spans up to which none is left out, which is quicker than to look which are needed
_END_TO_END = pc.CastOptions.safe(pa.large_binary())


class _Memory:
    """The process's memory from `address` on: `count` cells of `nbytes`, `stride` apart."""

    def __init__(self, address: int, count: int, stride: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (count,),
            "strides": (stride,),
            "typestr": f"|V{nbytes}",
        }


def cells_at(address: int, count: int, stride: int, nbytes: int) -> npt.NDArray[np.void]:
    """The process's memory from `address` on as `count` cells of `nbytes`, `stride` bytes apart, to be read only. The
    caller keeps that memory alive."""
    return np.asarray(_Memory(address, count, stride, nbytes))


def views_of(addresses: Ints, lengths: Ints) -> pa.Array:
    """The rows of `lengths` [n] bytes, LONGEST at most, that begin at `addresses` [n], as a binary_view array without a
    copy of them. The caller keeps their memory alive. 16 bytes a row."""
    spans, span = _spans(addresses >> _SPAN)
    views = np.empty((len(lengths), 4), np.int32)
    views[:, 0] = lengths
    views[:, 1] = 0  # the first bytes of the row, which only comparisons look at
    views[:, 2] = span
    views[:, 3] = addresses & ((1 << _SPAN) - 1)
    short = np.flatnonzero(lengths <= _INLINE)
    if len(short):
        _put_inside(addresses[short], lengths[short], short, views.view(np.uint8))
    memory = [pa.foreign_buffer(number << _SPAN, 2 << _SPAN) for number in spans]
    return pa.Array.from_buffers(pa.binary_view(), len(views), [None, pa.py_buffer(views), *memory])


def _spans(numbers: Ints) -> tuple[Iterable[int], Ints]:
    """Windows among which are all those of `numbers` [n], and which of them each is."""
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    if high - low < _NEAR:
        return range(low, high + 1), numbers - low
    spans, which = np.unique(numbers, return_inverse=True)
    return spans.tolist(), which


def _put_inside(addresses: Ints, lengths: Ints, rows: Ints, views: Bytes) -> None:
    """Copy short rows into their views, `views` uint8 [all, 16]."""
    views[rows, 4:] = 0
    longest = int(lengths.max())
    if not longest:
        return
    low = int(addresses[lengths > 0].min())
    memory = cells_at(low, int(addresses[lengths > 0].max()) - low + longest, 1, 1).view(np.uint8)
    for place in range(longest):
        some = lengths > place
        views[rows[some], 4 + place] = memory[addresses[some] - low + place]


def end_to_end(rows: pa.Array) -> tuple[Bytes, Ints]:
    """The bytes of a binary_view array's rows, uint8 [bytes], and where each begins and the last ends, int64 [n + 1]:
    in memory of Arrow's default pool, aligned to 64 bytes, which it uses again once nothing refers to it. Some 10 µs
    besides the copy."""
    if not len(rows):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, values = pc.call_function("cast", [rows], _END_TO_END).buffers()
    return np.frombuffer(values, np.uint8), np.frombuffer(offsets, np.int64)
