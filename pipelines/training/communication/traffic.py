"""What a rank sends to average gradients or weights, and how long that takes."""

import threading
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Traffic:
    """Counts transfers; several may be under way, and one thread may begin what another ends.

    `bytes`: what this rank sends, if n ranks sum b bytes around a ring: 2 · (n - 1) / n · b (Patarasuk & Yuan 2009).
    `seconds`: during which at least one transfer was under way.
    """

    ranks: int
    bytes: float = 0.0
    seconds: float = 0.0
    _under_way: int = 0
    _since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, nbytes: int) -> None:
        """A sum of `nbytes` over the ranks begins."""
        self.add(nbytes)
        with self._lock:
            if self._under_way == 0:
                self._since = perf_counter()
            self._under_way += 1

    def add(self, nbytes: int) -> None:
        """What was begun sums `nbytes` more."""
        self.add_sent(2 * (self.ranks - 1) / self.ranks * nbytes)

    def add_sent(self, nbytes: float) -> None:
        """So many bytes were sent, in a time that nobody took."""
        with self._lock:
            self.bytes += nbytes

    def end(self) -> None:
        """It is done."""
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self.seconds += perf_counter() - self._since

    def taken(self) -> tuple[float, float]:
        """(bytes, seconds) since the last call."""
        with self._lock:
            taken = self.bytes, self.seconds
            self.bytes, self.seconds = 0.0, 0.0
        return taken
