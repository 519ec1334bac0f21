"""Rows of any length in a batch."""

from collections.abc import Iterator
from typing import overload

import numpy as np
import pyarrow as pa

from pipelines.streaming.arrays import Ints
from pipelines.streaming.gather.views import Bytes


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
