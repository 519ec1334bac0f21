"""Rows of one length from anywhere in this process's memory, copied together in one vectorised pass.

There are three ways. NumPy's `take` writes where it is told to, but wants rows that lie on one grid: a shard's rows
always do, and sometimes those of several shards; for a few it isn't worth letting go of Python's lock. Long rows at any
address are laid end to end by Arrow (see `views`). Short ones, of which a view each is too much, and few are taken by
NumPy's fancy indexing, which makes an array of its own: they go by way of a scratch array that stays in the processor's
cache.

The callers vouch for the addresses: of rows inside shards that stay open meanwhile.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.streaming.arrays import Ints
from pipelines.streaming.gather.buffers import Buffers
from pipelines.streaming.gather.views import cells_at, end_to_end, views_of

_LONG = 512  # bytes of rows from which on Arrow is faster
_LITTLE = 16 << 10  # bytes up to which a second copy costs less than letting go of Python's lock
_SCRATCH = 240 << 10  # bytes: within the second-level cache, and so many that starting a copy costs little


@dataclass(frozen=True)
class Rows:
    """Rows of `nbytes` bytes: row i is cell `cells[i]`, int64 [n], of the memory from `start` to `stop`, where a cell
    begins at each multiple of `stride`; or, where there are `views`, row i of those."""

    nbytes: int
    cells: Ints
    start: int = 0
    stop: int = 0
    stride: int = 0
    views: pa.Array | None = None

    @classmethod
    def at(cls, addresses: Ints, nbytes: int) -> "Rows":
        """The rows that begin at `addresses` [n]."""
        if nbytes >= _LONG:
            return cls(nbytes, addresses, views=views_of(addresses, np.full(len(addresses), nbytes)))
        low, high = (int(addresses.min()), int(addresses.max())) if len(addresses) else (0, 0)
        return cls(nbytes, addresses - low, low, high + nbytes, 1)

    @classmethod
    def on_grid(cls, cells: Ints, origin: int, nbytes: int) -> "Rows":
        """The rows at `origin` + cell · nbytes, for `cells` [n]."""
        low, high = int(cells.min()), int(cells.max())
        return cls(nbytes, cells - low, origin + low * nbytes, origin + (high + 1) * nbytes, nbytes)

    def gather(self, part: slice, shape: tuple[int, ...], dtype: npt.DTypeLike, buffers: Buffers) -> npt.NDArray[Any]:
        """The rows of `part` as an array [rows, *shape] of their own."""
        cells = self.cells[part]
        if self.views is not None:
            return _end_to_end(self.views[part], (len(cells), *shape), dtype, buffers)
        out = buffers.empty((len(cells), *shape), dtype)
        if self.nbytes >= _LONG and not self._is_apart(out):
            return _end_to_end(self._views_of(cells), out.shape, dtype, buffers)
        self.copy(part, out)
        return out

    def copy(self, part: slice, out: npt.NDArray[Any]) -> None:
        """Fill `out`, contiguous [rows of `part`, …], with them."""
        if not out.size:
            return
        assert out.flags.c_contiguous
        flat = out.reshape(-1).view(f"V{self.nbytes}")
        if self.views is not None:
            flat[:] = end_to_end(self.views[part])[0].view(flat.dtype)
            return
        cells = self.cells[part]
        memory = cells_at(
            self.start, (self.stop - self.start - self.nbytes) // self.stride + 1, self.stride, self.nbytes
        )
        if self.stride == self.nbytes and out.nbytes > _LITTLE and self._is_apart(out):
            np.take(memory, cells, out=flat, mode="clip")  # and with mode "raise" too
            return
        together = max(1, _SCRATCH // self.nbytes)
        for first in range(0, len(flat), together):
            flat[first : first + together] = memory[cells[first : first + together]]

    def _is_apart(self, out: npt.NDArray[Any]) -> bool:
        """Whether `out` isn't amid the memory: else `take` would go by way of a copy."""
        begin = out.__array_interface__["data"][0]
        return bool(begin >= self.stop or begin + out.nbytes <= self.start)

    def _views_of(self, cells: Ints) -> pa.Array:
        return views_of(self.start + cells * self.stride, np.full(len(cells), self.nbytes))


def _end_to_end(rows: pa.Array, shape: tuple[int, ...], dtype: npt.DTypeLike, buffers: Buffers) -> npt.NDArray[Any]:
    values, _ = end_to_end(rows)
    return buffers.hold(values).view(dtype).reshape(shape)
