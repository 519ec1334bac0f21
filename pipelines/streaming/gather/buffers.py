"""Memory for batches, lent as arrays and taken back when nothing refers to them any more.

So a batch may be kept for as long as anyone likes, by whatever holds its arrays or views of them (slices,
`torch.from_numpy`, DLPack), and a loop that lets go of its batches writes into the same few buffers again: they are in
the processor's cache, and the kernel has no fresh pages to clear.
"""

import math
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

#: Makes `n` bytes of memory: a writable, contiguous uint8 [n].
Allocate = Callable[[int], Bytes]

ALIGNMENT = 64  # bytes; what XLA asks of memory that it takes without a copy
IDLE_BYTES = 256 << 20
_PAGE = 4096
_CLASSES = 8  # sizes per doubling: at most an eighth of a buffer is unused


def allocate(nbytes: int) -> Bytes:
    """Ordinary memory. NumPy asks for huge pages where it is large."""
    return np.empty(nbytes, np.uint8)


class _Loan:
    """What the arrays of one loan refer to: it dies with the last of them. NumPy makes an array of it by its interface;
    a plain array in its place would be looked through, and views would refer to the buffer itself. It holds the buffer,
    which outlives the Buffers that lent it where somebody keeps an array."""

    __slots__ = ("__array_interface__", "__weakref__", "buffer")

    def __init__(self, buffer: Bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.buffer = buffer
        address = buffer.__array_interface__["data"][0]
        place = address + -address % ALIGNMENT
        self.__array_interface__ = {"version": 3, "data": (place, False), "shape": shape, "typestr": dtype.str}


class Buffers:
    """Arrays out of reused memory, from `allocate` (pinned memory, say). Threads may share it.

    At most `idle_limit` bytes of idle buffers are kept; what is lent is bounded by who borrows.
    """

    def __init__(self, allocate: Allocate = allocate, idle_limit: int = IDLE_BYTES) -> None:
        self.allocate, self.idle_limit = allocate, idle_limit
        self._idle: dict[int, list[Bytes]] = {}
        self._lent: dict[int, tuple[weakref.ref[_Loan], Bytes]] = {}

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array whose content is whatever was there, aligned to ALIGNMENT bytes; some 3 µs."""
        dtype = np.dtype(dtype)
        size = _size_class(dtype.itemsize * math.prod(shape) + ALIGNMENT)
        try:
            buffer = self._idle[size].pop()  # the one that was used last
        except (KeyError, IndexError):
            buffer = self.allocate(size)
        loan = _Loan(buffer, shape, dtype)
        key = id(loan)
        self._lent[key] = weakref.ref(loan, lambda _: self._give_back(key)), buffer
        return np.asarray(loan)

    def hold(self, values: Bytes) -> Bytes:
        """`values`, contiguous uint8 [n] of ordinary memory that nobody else writes to: as they are, or copied to where
        `allocate` wants arrays to be."""
        if self.allocate is allocate:
            return values
        held = self.empty(values.shape, np.uint8)
        np.copyto(held, values)
        return held

    def _give_back(self, key: int) -> None:
        """Called when a loan dies, in whichever thread let go of it and perhaps amid anything: so there is no lock, and
        each operation on a dictionary or a list is whole."""
        _, buffer = self._lent.pop(key)
        if self.idle_bytes + buffer.nbytes <= self.idle_limit:
            self._idle.setdefault(buffer.nbytes, []).append(buffer)

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait for another use."""
        return sum(size * len(buffers) for size, buffers in list(self._idle.items()))

    @property
    def lent_bytes(self) -> int:
        """Bytes that somebody refers to."""
        return sum(buffer.nbytes for _, buffer in list(self._lent.values()))

    def clear(self) -> None:
        """Let go of idle buffers."""
        self._idle.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Buffers, (self.allocate, self.idle_limit)


class _Shared(Buffers):
    """The memory of all streams of this process. What a closed stream has let go of, the next one fills: new pages cost
    more than what is copied into them."""

    def clear(self) -> None:
        """Others may need it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return buffers_from, ()


_shared: tuple[int, Buffers] | None = None


def buffers_from(make: Allocate = allocate) -> Buffers:
    """Of ordinary memory the process' own, which all streams share; else a stream's. A forked child's is new."""
    global _shared
    if make is not allocate:
        return Buffers(make)
    found = _shared
    if found is None or found[0] != os.getpid():
        found = _shared = os.getpid(), _Shared()
    return found[1]


def _size_class(nbytes: int) -> int:
    """`nbytes` rounded up to one of _CLASSES sizes per doubling, in whole pages: so that batches of blobs, which are of
    any size, find a buffer again."""
    step = max(_PAGE, 1 << max(0, nbytes.bit_length() - 1 - _CLASSES.bit_length() + 1))
    return -(-nbytes // step) * step
