"""Where the time of a stream goes.

`wait` is the consumer's: how long it stood still for want of a batch. The others are the preparing threads', which run
while the consumer works, and tell what to do about the waiting: `fetch` is waiting for shards that are not here yet and
opening them, `plan` finding out which samples come next, `decode` decoding images, `gather` copying.

Of whole documents as samples, it also counts the `positions` of batches that a model sees, those of them that are
`padding`, and the tokens that were `cut` off.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

from storage.forks import ForkLock


@dataclass(frozen=True)
class Times:
    """Seconds since some moment, and what was delivered in them."""

    elapsed: float = 0.0
    wait: float = 0.0
    fetch: float = 0.0
    plan: float = 0.0
    decode: float = 0.0
    gather: float = 0.0
    batches: int = 0
    samples: int = 0
    positions: int = 0
    padding: int = 0
    cut: int = 0

    def __sub__(self, earlier: Self) -> "Times":
        return Times(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    def shares(self) -> dict[str, float]:
        """Of the time that elapsed, by part: how long each took. They overlap, so they add up to anything."""
        parts = ("wait", "fetch", "plan", "decode", "gather")
        return {part: getattr(self, part) / self.elapsed if self.elapsed else 0.0 for part in parts}

    def of_documents(self) -> dict[str, float]:
        """Shares where samples are whole documents, else {}: `padding` of the positions, `cut` of the tokens."""
        if not self.positions:
            return {}
        tokens = self.positions - self.padding + self.cut
        return {"padding": self.padding / self.positions, "cut": self.cut / max(1, tokens)}


class _Within(threading.local):
    """Of each thread: the seconds of what was timed inside of what it times now."""

    seconds = 0.0


class Meter:
    """Counts the seconds of each part; see the module. Threads may share it: of a part that several are at, their
    seconds add up. It survives a fork; one that was pickled begins anew."""

    def __init__(self) -> None:
        self._lock, self._within = ForkLock(), _Within()
        self._begun = time.perf_counter()
        self.wait = self.fetch = self.plan = self.decode = self.gather = 0.0
        self.batches = self.samples = self.positions = self.padding = self.cut = 0

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count what is done inside as `part`, besides what is counted as another one there."""
        outside, self._within.seconds = self._within.seconds, 0.0
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.count(**{part: took - self._within.seconds})
            self._within.seconds = outside + took

    def count(self, **more: float) -> None:
        """Add to counts, by name."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def snapshot(self) -> Times:
        """The counts up to now. The difference of two is what happened between them."""
        elapsed = time.perf_counter() - self._begun
        counts = (self.wait, self.fetch, self.plan, self.decode, self.gather, self.batches, self.samples)
        return Times(elapsed, *counts, self.positions, self.padding, self.cut)

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, ()
