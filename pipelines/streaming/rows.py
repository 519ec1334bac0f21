"""Copies of rows from anywhere in this process's memory, each in one vectorised pass.

There are three ways. NumPy's `take` writes where it is told to, but wants rows that lie on one grid: a shard's rows
always do, and sometimes those of several shards. Long rows at any address are copied by pointers (see `pointers`).
Short ones, of which a pointer each is too much, are taken by NumPy's fancy indexing, which makes an array of its own:
they go by way of a scratch array that stays in the processor's cache.

The callers vouch for the addresses: of rows inside shards that stay open meanwhile.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from pipelines.streaming.pointers import copy_rows

_LONG = 512  # bytes of rows from which on pointers are faster: by a half at 4 KiB, and slower by a half at 8 bytes
_SCRATCH = 240 << 10  # bytes: within the second-level cache, and so many that starting a copy costs little


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


@dataclass(frozen=True)
class Rows:
    """Rows of `nbytes` bytes: row i is cell `cells[i]`, int64 [n], of the memory from `start` to `stop`, where a cell
    begins at each multiple of `stride`. Where `stride` is 0, `cells` are addresses."""

    nbytes: int
    cells: Ints
    start: int = 0
    stop: int = 0
    stride: int = 0

    @classmethod
    def at(cls, addresses: Ints, nbytes: int) -> "Rows":
        """The rows that begin at `addresses` [n]."""
        if not len(addresses) or not 0 < nbytes < _LONG:
            return cls(nbytes, addresses)
        low, high = int(addresses.min()), int(addresses.max())
        return cls(nbytes, addresses - low, low, high + nbytes, 1)

    @classmethod
    def on_grid(cls, cells: Ints, origin: int, nbytes: int) -> "Rows":
        """The rows at `origin` + cell · nbytes, for `cells` [n]."""
        low, high = int(cells.min()), int(cells.max())
        return cls(nbytes, cells - low, origin + low * nbytes, origin + (high + 1) * nbytes, nbytes)

    def copy(self, part: slice, out: npt.NDArray[Any]) -> None:
        """Fill `out`, contiguous [rows of `part`, …], with them."""
        if not out.size:
            return
        assert out.flags.c_contiguous
        flat = out.reshape(-1).view(f"V{self.nbytes}")
        cells = self.cells[part]
        if not self.stride:
            copy_rows(cells, self.nbytes, flat)
            return
        begin = flat.__array_interface__["data"][0]
        apart = begin >= self.stop or begin + flat.nbytes <= self.start  # else `take` would go by way of a copy
        count = (self.stop - self.start - self.nbytes) // self.stride + 1
        memory = np.asarray(_Memory(self.start, count, self.stride, self.nbytes))
        if self.stride == self.nbytes and apart:
            np.take(memory, cells, out=flat, mode="clip")  # and with mode "raise" too
        elif self.nbytes >= _LONG:
            copy_rows(self.start + cells * self.stride, self.nbytes, flat)
        else:
            together = max(1, _SCRATCH // self.nbytes)
            for first in range(0, len(flat), together):
                flat[first : first + together] = memory[cells[first : first + together]]
