"""The node cache's index.json: what it holds, and its lock."""

import errno
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from storage.cache.hot.breaker import Breaker
from storage.cache.locks import Locked, lock
from storage.forks import ForkLock

_BRIEFLY = 0.5  # seconds for an attempt after a time-out
_log = logging.getLogger(__name__)


@dataclass
class Index:
    """What index.json holds."""

    bytes: int = 0
    counted: float = 0.0  # when the folder was counted
    oldest: float = 0.0  # no pinned shard was last read before then
    ring: dict[str, int] = field(default_factory=dict)  # digest → bytes, the oldest first
    counters: dict[str, int] = field(default_factory=dict)  # of all processes

    @classmethod
    def load(cls, descriptor: int) -> "Index | None":
        """None where there is none, or a crash has torn it: then the folder is counted."""
        try:
            return cls(**json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
        except (ValueError, TypeError):
            return None

    def save(self, descriptor: int) -> None:
        self.bytes = max(0, self.bytes)  # the folder may have been deleted under us
        text = json.dumps(vars(self)).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))


class IndexLock:
    """The lock of index.json, for which one waits `timeout` seconds at most. After a time-out it is left alone but for
    short attempts with pauses between them (see breaker.py): a process that is stopped while it has the lock costs the
    others one time-out. Threads may share it; it survives a fork."""

    def __init__(self, file: Path, timeout: float) -> None:
        self.file, self.timeout = file, timeout
        self._guard, self._breaker = ForkLock(), Breaker()

    @property
    def rests(self) -> bool:
        """Whether it is being left alone now."""
        return self._breaker.rests(time.monotonic())

    def take(self, descriptor: int) -> None:
        """Lock the open file. Raises Locked, at once while it is left alone."""
        with self._guard:
            if not self._breaker.allows(time.monotonic()):
                raise Locked(errno.ETIMEDOUT, "locked by another process a moment ago", str(self.file))
            seconds = self.timeout if self._breaker.state == "closed" else min(self.timeout, _BRIEFLY)
        try:
            lock(descriptor, seconds, self.file)
        except Locked:
            with self._guard:
                first = self._breaker.failed(time.monotonic())
            if first:
                _log.warning(
                    "node cache: %s has been locked by another process for %g s (cache.hot.wait_s). It may be stopped: "
                    "`fuser` names it. Until it lets go, shards that are new here are kept in memory.",
                    self.file, seconds,
                )  # fmt: skip
            raise
        with self._guard:
            back = self._breaker.succeeded()
        if back:
            _log.warning("node cache: %s is free again", self.file)
