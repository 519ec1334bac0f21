"""Which shards a cache keeps: a pinned set that is never replaced while it is in use, and a small ring.

A fresh order reads every shard once an epoch. For that access the shard that was just read is the last one that will be
needed again, so that replacing the least recently used is the worst choice and replacing nothing is the best (equal to
Belady's optimum: a cache of a share s of the data has hit ratio s). Hence the pinned set: who comes first, stays. The
ring takes what no longer fits, first in, first out, so that several readers of the open windows fetch it once.

A pinned entry that nobody has read for `idle` seconds may give place: else a replaced dataset would block for ever.

Everything here is arithmetic without clock, files or network; the node cache calls it, the hot cache's Lua script says
the same (a test compares the two), and simulations run it as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

Place = Literal["pinned", "ring", "none"]
DAY = 86_400.0  # seconds
_SHARD = 64 << 20  # bytes of a shard by default


@dataclass(frozen=True)
class Decision:
    """Where a shard goes, and the keys of those that it replaces."""

    place: Place
    drop: tuple[str, ...] = ()


def decide(
    size: int,
    *,
    pinned: int,
    pinned_limit: int,
    idle: Iterable[tuple[str, int]],
    ring: Sequence[tuple[str, int]],
    ring_limit: int,
) -> Decision:
    """Where a shard of `size` bytes goes that isn't held yet.

    `pinned` bytes are pinned; `idle` yields (key, bytes) of the pinned ones that may give place, the longest unread
    first, and is asked only when there is no room; `ring` holds (key, bytes), the oldest first.
    """
    over = pinned + size - pinned_limit
    drop: list[str] = []
    if over > 0 and size <= pinned_limit:
        for key, freed in idle:
            drop.append(key)
            over -= freed
            if over <= 0:
                break
    if over <= 0:
        return Decision("pinned", tuple(drop))
    if size > ring_limit:
        return Decision("none")
    over, drop = sum(nbytes for _, nbytes in ring) + size - ring_limit, []
    for key, freed in ring:
        if over <= 0:
            break
        drop.append(key)
        over -= freed
    return Decision("ring", tuple(drop))


def ring_of(budget: int) -> int:
    """Bytes of the ring where none are given: 1/64 of the budget, or four shards if they are no more than 1/8 of it."""
    return max(budget // 64, min(4 * _SHARD, budget // 8))


class Policy:
    """A cache of `budget` bytes, `ring` of which are the ring's, as a pure state machine: times are arguments.

    `read` says whether a key is held; `admit` is for keys that are not, or again for one that must be filled anew.
    """

    def __init__(self, budget: int, ring: int | None = None, idle: float = DAY) -> None:
        self.ring_limit = ring_of(budget) if ring is None else min(ring, budget)
        self.pinned_limit = budget - self.ring_limit
        self.idle = idle
        self.pinned: dict[str, int] = {}  # bytes
        self.ring: dict[str, int] = {}  # bytes, the oldest first
        self.pinned_bytes = self.ring_bytes = 0
        self._read: dict[str, float] = {}  # time of the last use of the pinned ones, the longest unread first

    @property
    def used(self) -> int:
        """Bytes held."""
        return self.pinned_bytes + self.ring_bytes

    def read(self, key: str, now: float) -> bool:
        """Whether `key` is held; notes that it was used."""
        if key in self.pinned:
            self._read.pop(key)
            self._read[key] = now
        return key in self.pinned or key in self.ring

    def admit(self, key: str, size: int, now: float) -> Decision:
        """Take `key` in if it has a place, and drop what it replaces. A key that is held stays where it is."""
        if self.read(key, now):
            return Decision("pinned" if key in self.pinned else "ring")
        unread = ((k, self.pinned[k]) for k in takewhile(lambda k: self._read[k] <= now - self.idle, self._read))
        decision = decide(
            size,
            pinned=self.pinned_bytes,
            pinned_limit=self.pinned_limit,
            idle=unread,
            ring=list(self.ring.items()),
            ring_limit=self.ring_limit,
        )
        for dropped in decision.drop:
            self.forget(dropped)
        if decision.place == "pinned":
            self.pinned[key], self._read[key] = size, now
            self.pinned_bytes += size
        elif decision.place == "ring":
            self.ring[key] = size
            self.ring_bytes += size
        return decision

    def forget(self, key: str) -> None:
        """Drop `key`, if it is held."""
        self.pinned_bytes -= self.pinned.pop(key, 0)
        self.ring_bytes -= self.ring.pop(key, 0)
        self._read.pop(key, None)
