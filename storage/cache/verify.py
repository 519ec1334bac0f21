"""Checking bytes while they arrive, when they are still in the processor's cache."""

from blake3 import blake3

_PART = 1 << 20  # bytes


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
