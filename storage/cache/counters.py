"""What a tier counts."""

import threading
from dataclasses import asdict, dataclass, fields


@dataclass
class Counters:
    """Of one tier, since it was opened: `hits` and `misses` are shards asked for, `bytes` those that it delivered,
    `waits` how often it waited for another's fetch, `failures` how often it could not be used."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    waits: int = 0
    failures: int = 0

    @property
    def hit_ratio(self) -> float:
        """Hits per shard asked for; 0 where none was."""
        return self.hits / max(1, self.hits + self.misses)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Tally:
    """Counters that several threads add to, and that remember what was reported already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now, self._reported = Counters(), Counters()

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._now, name, getattr(self._now, name) + amount)

    def counters(self) -> Counters:
        """A copy."""
        with self._lock:
            return Counters(**self._now.as_dict())

    def unreported(self) -> dict[str, int]:
        """What was added since the last call."""
        with self._lock:
            delta = {f.name: getattr(self._now, f.name) - getattr(self._reported, f.name) for f in fields(Counters)}
            self._reported = Counters(**self._now.as_dict())
            return {name: amount for name, amount in delta.items() if amount}
