"""Where a shard arrives: memory for it, and its digest, made of bytes that are still in the processor's cache."""

import mmap
import os
import threading
from contextlib import suppress

from blake3 import blake3

_PART = 1 << 20  # bytes
SPARE = 512 << 20  # bytes


class Memory:
    """Memory for shards that arrive, used again when no view of it is left. Safe for threads.

    New memory costs more than what is done with it: to fill 64 MiB for the first time took 40 to 50 ms, in huge pages
    9 ms, in a mapped file 20 ms, and a multiple of that in a virtual machine whose host must find the pages first; the
    second time 3 ms. Up to `spare` unused bytes are kept.
    """

    def __init__(self, spare: int = SPARE) -> None:
        self._spare = spare
        self._lock = threading.Lock()
        self._pieces: list[mmap.mmap] = []

    def take(self, nbytes: int) -> memoryview:
        """Writable memory of `nbytes`; what it holds is anything."""
        if not nbytes:
            return memoryview(bytearray())
        with self._lock:
            unused = [piece for piece in self._pieces if _is_unused(piece)]
            for piece in unused:
                if nbytes <= len(piece) <= 2 * nbytes:
                    return memoryview(piece)[:nbytes]
            self._let_go(unused)
            piece = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without them
                    piece.madvise(mmap.MADV_HUGEPAGE)
            self._pieces.append(piece)
            return memoryview(piece)

    def _let_go(self, unused: list[mmap.mmap]) -> None:
        """Of the unused pieces those beyond the spare, the oldest first."""
        excess = sum(map(len, unused)) - self._spare
        for piece in unused:
            if excess <= 0:
                return
            self._pieces.remove(piece)
            excess -= len(piece)

    def rest(self) -> None:
        """Nobody may need it for a while: the kernel may take what is unused when it is short of memory. Until then the
        same pages are filled again."""
        with self._lock:
            unused = [piece for piece in self._pieces if _is_unused(piece)]
            self._let_go(unused)
            for piece in unused:
                if hasattr(mmap, "MADV_FREE"):
                    with suppress(OSError):
                        piece.madvise(mmap.MADV_FREE)


_shared: tuple[int, Memory] | None = None


def shared_memory() -> Memory:
    """The memory of all caches of this process: what one has let go of, another one fills. A forked child's is new."""
    global _shared
    found = _shared
    if found is None or found[0] != os.getpid():
        found = _shared = os.getpid(), Memory()
    return found[1]


def _is_unused(piece: mmap.mmap) -> bool:
    """Whether no view of it is left: only then may a mapping be resized."""
    try:
        piece.resize(len(piece))
    except (BufferError, SystemError):  # SystemError: this platform can't resize
        return False
    return True


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
