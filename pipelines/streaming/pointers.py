"""One copy of many rows that lie anywhere in this process's memory, by CPython itself.

A buffer whose first dimension is an array of pointers is part of the buffer protocol (PEP 3118: `suboffsets`), and
`PyBuffer_ToContiguous`, of the stable ABI since Python 3.11, lays such a buffer end to end with one memcpy a row. Its
address is all that a row needs besides.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints

_PIECE = 2 << 20  # bytes copied without letting other threads have the interpreter's lock: less than a millisecond


class _Buffer(ctypes.Structure):
    """Py_buffer of the stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


#: A prototype of our own: `ctypes.pythonapi.PyBuffer_ToContiguous` is the whole process's.
_to_contiguous = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.c_ssize_t, ctypes.c_char
)(("PyBuffer_ToContiguous", ctypes.pythonapi))


def copy_rows(addresses: Ints, nbytes: int, out: npt.NDArray[Any]) -> None:
    """Fill `out`, contiguous [n] items of `nbytes` bytes, with what begins at `addresses`, int64 [n]. The interpreter's
    lock is held meanwhile, and may be had by others after each 2 MiB or row.

    The caller vouches for the addresses.
    """
    assert out.flags.c_contiguous
    assert out.nbytes == len(addresses) * nbytes
    pointers = np.ascontiguousarray(addresses, np.int64)
    source, target = pointers.ctypes.data, out.ctypes.data
    together = max(1, _PIECE // max(1, nbytes))
    for first in range(0, len(pointers), together):
        count = min(together, len(pointers) - first)
        dimensions = np.array([count, nbytes, 8, 1, 0, -1])  # shape, strides, suboffsets
        shape = dimensions.ctypes.data
        buffer = _Buffer(source + 8 * first, None, count * nbytes, 1, 1, 2, b"B", shape, shape + 16, shape + 32, None)
        _to_contiguous(target + first * nbytes, buffer, count * nbytes, b"C")
