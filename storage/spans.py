"""Into which ranges an object is cut, by how fast the store's connections are.

A store in a cloud gives each connection some 50 to 90 MB/s and answers after tens of milliseconds, so many connections
are what is fast. One near by gives a connection all it has, and there each further one costs processor time and gains
nothing (docs/decisions/0032).
"""

from collections import deque

PART = 1 << 20  # bytes: ranges are whole parts
_SLOW = 100e6  # bytes/s of a connection, below which more of them are used
_KEPT = 16  # ranges whose speed is remembered
_LEAST, _MOST = 4 << 20, 16 << 20  # bytes of a range


class Spans:
    """Ranges of objects, and how many of an object's are read at once. Safe for threads."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=_KEPT)

    def cut(self, nbytes: int) -> tuple[list[tuple[int, int]], int]:
        """(start, stop) of the ranges of `nbytes`, and at most how many of them to read side by side."""
        number, at_once = self._shape()
        step = min(max(-(-nbytes // number // PART) * PART, _LEAST), _MOST)
        return [(start, min(start + step, nbytes)) for start in range(0, nbytes, step)], at_once

    def note(self, nbytes: int, seconds: float) -> None:
        """A range of `nbytes` came within `seconds`. Short ones say more of the store's answering than of its speed."""
        if nbytes >= PART:
            self._rates.append(nbytes / max(seconds, 1e-9))

    def _shape(self) -> tuple[int, int]:
        """Ranges of an object that is small enough, and how many of a larger one at once."""
        if not self._rates:
            return 8, 8
        return (16, 16) if self.far else (4, 8)

    @property
    def far(self) -> bool:
        """Whether connections are known to be slow. Of the last ranges the fastest counts: other work on this machine
        slows some, and a store's limit all."""
        rates = list(self._rates)
        return bool(rates) and max(rates) < _SLOW
