"""Into which ranges an object is cut, by how fast the store's connections are.

A store in a cloud gives each connection some 50 to 90 MB/s and answers after tens of milliseconds, so many connections
are what is fast. One near by gives a connection all it has, and there each further one costs processor time and gains
nothing (docs/decisions/0032).
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

PART = 1 << 20  # bytes: ranges are whole parts, and so many must come within `compute.lake_timeout`
_SLOW = 100e6  # bytes/s of a connection, below which more of them are used
_KEPT = 16  # ranges whose speed is remembered
_LEAST, _MOST = 4 << 20, 16 << 20  # bytes of a range
_MOST_NEAR = 80 << 20  # the usual shard, which is a little more than 64 MiB
# Connections to an object that alone is being read, and to one beside others:
_UNKNOWN, _FAR, _NEAR = (8, 8), (16, 16), (4, 1)

Ranges = list[tuple[int, int]]


class Cutter:
    """Cuts objects into ranges, and says how many of an object's to read at once. Safe for threads.

    Unless it `learns`, it goes on as if nothing were known of the store.
    """

    def __init__(self, learns: bool = True) -> None:
        self._learns = learns
        self._rates: deque[float] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._reading = 0  # objects

    @contextmanager
    def cut(self, nbytes: int) -> Iterator[tuple[Ranges, int]]:
        """(start, stop) of the ranges of an object of `nbytes`, which is read inside, and how many of them at once."""
        with self._lock:
            self._reading += 1
            beside = self._reading > 1
        try:
            shape = _UNKNOWN if not self._rates else _FAR if self.far else _NEAR
            at_once, most = shape[beside], _MOST_NEAR if shape is _NEAR else _MOST
            step = min(max(-(-nbytes // at_once // PART) * PART, _LEAST), most)
            yield [(start, min(start + step, nbytes)) for start in range(0, nbytes, step)], at_once
        finally:
            with self._lock:
                self._reading -= 1

    def note(self, nbytes: int, seconds: float) -> None:
        """A range of `nbytes` came within `seconds`. Short ones say more of the store's answering than of its speed."""
        if self._learns and nbytes >= PART:
            self._rates.append(nbytes / max(seconds, 1e-9))

    @property
    def far(self) -> bool:
        """Whether connections are known to be slow. Of the last ranges the second fastest counts: other work on this
        machine slows some, a store's limit all, and one may have slipped through it."""
        fastest = sorted(self._rates)[-2:]
        return bool(fastest) and fastest[0] < _SLOW
