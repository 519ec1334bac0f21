"""Files as memory."""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa


def map_file(file: Path) -> pa.Buffer:
    """The file's bytes, mapped read-only; they stay mapped for as long as anything refers to them. Raises OSError.

    The kernel is asked for huge pages, which it gives where it reads the file from now on and the file system can: rows
    in random order then cost far fewer misses of the address translation (measured: gathers 1.3 times as fast).
    """
    with file.open("rb") as opened:
        return map_opened(opened)


def map_opened(file: BinaryIO) -> pa.Buffer:
    """The same of a file that is open, and needn't stay so."""
    size = os.fstat(file.fileno()).st_size
    if not size:
        return pa.py_buffer(b"")
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return pa.py_buffer(mapped)


def read_in(mapped: pa.Buffer) -> None:
    """Touch every page, in order and outside the GIL: what isn't in memory is read as fast as the disk can, in huge
    pages where the mapping has them, instead of row by row when the rows are needed."""
    import numpy as np

    if mapped.size:
        np.bitwise_or.reduce(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE])
