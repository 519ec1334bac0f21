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
    mapped = mapping(file)
    if mapped is None:
        return pa.py_buffer(b"")
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return pa.py_buffer(mapped)


def mapping(file: BinaryIO) -> mmap.mmap | None:
    """An open file, mapped read-only; None where it is empty. See `let_go`."""
    size = os.fstat(file.fileno()).st_size
    return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else None


def let_go(mapped: mmap.mmap) -> None:
    """What was looked at takes this process's memory no longer; it is mapped again when it is looked at again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def read_in(mapped: pa.Buffer) -> None:
    """Touch every page, in order and outside the GIL: what isn't in memory is read as fast as the disk can, in huge
    pages where the mapping has them, instead of row by row when the rows are needed."""
    import numpy as np

    if mapped.size:
        np.bitwise_or.reduce(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE])
