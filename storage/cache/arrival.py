"""Where a shard arrives: memory for it, and its digest, made of bytes that are still in the processor's cache."""

import mmap

from blake3 import blake3

_PART = 1 << 20  # bytes


def memory(nbytes: int) -> memoryview:
    """Writable memory of `nbytes`, given back with its last view.

    In huge pages, where Linux has them on request: filling 64 MiB for the first time took 9 ms so, 50 ms in small pages
    and 20 ms in a mapped file, from which writing it to a file afterwards takes 8 ms.
    """
    if not nbytes:
        return memoryview(bytearray())
    mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


class Verifier:
    """BLAKE3 of `view`, whose parts of 1 MiB arrive in any order. Calls must not overlap."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._hasher = view, blake3()
        self._waiting: set[int] = set()
        self._next = 0  # the first part that isn't hashed

    def arrived(self, start: int, stop: int) -> None:
        """Bytes [start, stop) are there: whole parts, or up to the end. Each once."""
        self._waiting.update(range(start // _PART, -(-stop // _PART)))
        first = self._next
        while self._next in self._waiting:
            self._waiting.remove(self._next)
            self._next += 1
        if self._next > first:
            self._hasher.update(self._view[first * _PART : self._next * _PART])

    def digest(self) -> str:
        """Of the whole: what had not been told is taken to be there."""
        self._hasher.update(self._view[self._next * _PART :])
        self._next = -(-len(self._view) // _PART)
        return self._hasher.hexdigest()
