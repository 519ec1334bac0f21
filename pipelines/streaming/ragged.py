"""Rows of any length in a batch: what they look like, and how they are copied together from anywhere in memory.

Two ways of copying, chosen by the rows' length. Long rows are copied one after the other by C's memmove, which takes
some 0.3 µs a row besides the copy itself. For many short rows that is too much, so they are copied by length: rows of
2^k to 2^(k+1) - 1 bytes are two cells of 2^k bytes each, one at the row's beginning and one at its end, which overlap.
So a class of lengths is two vectorised gathers. (Gathers by single bytes or by words were slower from 60 bytes on;
Arrow's `take` reserves memory by the span of the addresses, and `numpy.concatenate` of views is as fast as memmove.
For long rows (8 to 32 KB at random places of 334 MB) one call for all was tried in place of memmove and its 6.3 GB/s:
a flatten of Arrow's list views 6.1, process_vm_readv of this process 3.4, pwritev into a memory file 4.7, NumPy's
gather of cells of 4 KiB 4.3. Two threads, a byte of each page read beforehand, and rows by address gained nothing.
Those are the best of short slices, on a machine that did other work; one memcpy of bytes that lie together reached 15.
A loop over memcpy in C, with the same rows, was measured as a limit: 0.52 - 0.58 of the one memcpy into a buffer that
stays in the cache, 0.38 - 0.53 into buffers of 8 MiB in turn; this module's loop 0.41 - 0.46 and 0.29 - 0.33.)

The callers vouch for the addresses: of rows inside shards that stay open meanwhile.
"""

import ctypes
from collections import deque
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.streaming.arrays import Ints

Bytes = npt.NDArray[np.uint8]

_SHORT = 2048  # mean bytes of rows up to which many are copied by length
_MANY = 128  # rows from which on that pays
_LARGEST_CELL = 1 << 13  # bytes; an address space of larger cells is more than NumPy can describe
_LONG = 128 << 10  # mean bytes of rows from which on other threads may run during each copy


class Ragged:
    """Rows of bytes: row i is values[offsets[i]:offsets[i + 1]], `values` uint8 [bytes], `offsets` int64 [n + 1].

    Indexing and slicing make views. `to_arrow()` is large_binary on the same memory.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: Bytes, offsets: Ints) -> None:
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> Bytes: ...
    @overload
    def __getitem__(self, place: slice) -> "Ragged": ...
    def __getitem__(self, place: int | slice) -> "Bytes | Ragged":
        """A row as uint8 [bytes], or the rows of a slice without a step as Ragged."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of rows of any length has no step, given: {step}")
            offsets = self.offsets[start : max(start, stop) + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        row = range(len(self))[place]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Bytes]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {self.offsets[-1]} bytes)"

    @property
    def lengths(self) -> Ints:
        """Bytes of each row, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.offsets.nbytes

    def padded(self, count: int) -> "Ragged":
        """The same with empty rows after the last, up to `count`."""
        more = np.full(count - len(self), self.offsets[-1])
        return Ragged(self.values, np.concatenate([self.offsets, more]))

    def to_arrow(self) -> pa.LargeBinaryArray:
        """The rows as an Arrow array, without a copy."""
        buffers = [None, pa.py_buffer(np.ascontiguousarray(self.offsets)), pa.py_buffer(self.values)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)


def offsets_of(lengths: Ints) -> Ints:
    """Where rows of these lengths begin when laid end to end, and where the last ends: int64 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def copy_ragged(addresses: Ints, lengths: Ints, offsets: Ints, out: Bytes) -> None:
    """Fill `out`, contiguous uint8 [offsets[n]], with the rows of `lengths` [n] bytes that begin at `addresses` [n]:
    row i at offsets[i]. They lie end to end, or with gaps, which stay as they are. Needs no memory besides for long
    rows, less than `out` for short ones."""
    rows = len(lengths)
    if rows >= _MANY and len(out) <= _SHORT * rows:
        _copy_by_length(addresses, lengths, offsets[:-1], out)
    else:
        copy = _copy if len(out) <= _LONG * rows else ctypes.memmove
        places = offsets[:-1] + out.ctypes.data
        deque(map(copy, places.tolist(), addresses.tolist(), lengths.tolist()), maxlen=0)


#: C's memmove without letting go of the interpreter's lock, which costs more than to copy some KB.
_copy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)


def _copy_by_length(addresses: Ints, lengths: Ints, begins: Ints, out: Bytes) -> None:
    if not lengths.all():  # an empty row's address may be anything
        kept = np.flatnonzero(lengths)
        addresses, lengths, begins = addresses[kept], lengths[kept], begins[kept]
    if not len(lengths):
        return
    low, extent = int(addresses.min()), int(np.ptp(addresses))
    classes = np.frexp(lengths)[1] - 1  # ⌊log2⌋
    for exponent in np.unique(classes).tolist():
        nbytes = 1 << exponent
        rows = np.flatnonzero(classes == exponent)
        first, begin, rest = addresses[rows], begins[rows], lengths[rows] - nbytes
        if nbytes > _LARGEST_CELL:
            deque(map(_copy, (begin + out.ctypes.data).tolist(), first.tolist(), lengths[rows].tolist()), maxlen=0)
            continue
        source = _memory(low, extent + 2 * nbytes, nbytes)
        target = _memory(out.ctypes.data, len(out), nbytes, read_only=False)
        first -= low
        target[begin] = source[first]
        target[begin + rest] = source[first + rest]


class _Memory:
    """This process's memory: `count` overlapping cells of `nbytes`, one beginning at each byte from `address` on."""

    def __init__(self, address: int, count: int, nbytes: int, read_only: bool) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, read_only),
            "shape": (count,),
            "strides": (1,),
            "typestr": "|u1" if nbytes == 1 else f"|V{nbytes}",
        }


def _memory(address: int, extent: int, nbytes: int, read_only: bool = True) -> npt.NDArray[Any]:
    """All cells of `nbytes` within the `extent` bytes from `address` on. The caller keeps that memory alive."""
    return np.asarray(_Memory(address, extent - nbytes + 1, nbytes, read_only))
