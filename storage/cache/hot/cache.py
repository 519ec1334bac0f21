"""The hot cache: shards in Redis for the whole cluster, as parts of 1 MiB under `PREFIX:part:DIGEST:NUMBER`.

Redis runs with `maxmemory-policy noeviction`; what it holds is the clients' decision, made in its index. A shard that
is not there is fetched by whoever gets its lease, and the others take its parts as they come. The time that any of this
may take is bounded, and whatever fails leaves the caller with the lake.
"""

import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.cache.arrival import Verifier
from storage.cache.counters import Tally
from storage.cache.hot.address import check
from storage.cache.hot.index import Begun, Index
from storage.cache.hot.link import Link, Unavailable
from storage.cache.hot.push import BATCH, MIN_RATE, PART, Pusher, Share, delete_parts, part_key, part_keys
from storage.cache.hot.receive import get_into
from storage.cache.policy import DAY, ring_of
from storage.redact import mask

_DROPPED = 256  # shards dropped in one exchange
_ASKED = 1024  # parts asked for in one exchange
_ASK = 0.1  # seconds without a new part after which a waiter asks who fetches
_log = logging.getLogger(__name__)

OnRange = Callable[[int, int], None]
FromLake = Callable[[OnRange | None], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds after which a hot cache gives something up."""

    timeout: float = 0.5
    """An exchange counts as failed."""
    wait: float = 60.0
    """Another's fetch is waited for no longer."""
    lease: float = 5.0
    """The lease of a dead process is gone."""
    idle: float = DAY
    """By 1.25 times as many, what nobody reads expires."""


class HotCache:
    """At most `budget_bytes` of shards in the Redis at `url` (see address.py), `ring_bytes` of them in the ring.

    `server` is kept alive with it (an Embedded one). Threads may share it; it can be pickled and survives a fork.
    Nothing is connected before the first use.
    """

    def __init__(
        self,
        url: str,
        budget_bytes: int,
        ring_bytes: int | None = None,
        *,
        timing: Timing = Timing(),
        prefix: str = "shardline",
        server: object = None,
    ) -> None:
        self.url, self.budget = check(url), budget_bytes
        self.ring_limit = ring_of(budget_bytes) if ring_bytes is None else min(ring_bytes, budget_bytes)
        self.timing, self.prefix = timing, prefix
        self.index = Index(
            prefix,
            pinned_limit=budget_bytes - self.ring_limit,
            ring_limit=self.ring_limit,
            idle=round(timing.idle * 1000),
            keep=round(timing.idle * 1250),
            lease=round(timing.lease * 1000),
        )
        self.server = server
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self.link = Link(self.url, self.timing.timeout)
        self._pusher = Pusher(self.link, self.index)
        self.tally = Tally()
        self._within = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.url, self.budget, self.ring_limit, self.timing, self.prefix)

    def __repr__(self) -> str:
        return f"HotCache({mask(self.url)!r}, {self.budget})"

    # -- reading and filling ---------------------------------------------------------------------------------------

    def fill(self, digest: str, view: memoryview, from_lake: FromLake) -> bool:
        """Put the shard into `view`: from Redis (True), or by `from_lake(on_range)`, which must check what it reads,
        and for the whole cluster if that is needed (`on_range` is then called with what arrives)."""
        if self._process != os.getpid():
            self._reset()
        token = secrets.token_hex(8)
        try:
            found = self._obtain(digest, view, token)
        except Unavailable:
            self.tally.add(failures=1)
            found = False
        if found is True:
            self.tally.add(hits=1, bytes=len(view))
            return True
        self.tally.add(misses=1)
        if found is None:
            self._fetch_for_all(digest, view, token, from_lake)
        else:
            from_lake(None)
        return False

    def _fetch_for_all(self, digest: str, view: memoryview, token: str, from_lake: FromLake) -> None:
        share: Share = self._pusher.begin(digest, view, token)
        try:
            share.wait_for_turn(self.timing.wait)
            from_lake(share.arrived)
        except BaseException:
            share.end(complete=False)
            raise
        share.end(complete=True)

    def _obtain(self, digest: str, view: memoryview, token: str) -> bool | None:
        """True: it was taken from Redis. None: the lease is ours, fetch it for all. False: fetch it alone."""
        self._keep_within()
        end = time.monotonic() + self.timing.wait
        every = range(-(-len(view) // PART))
        verifier = Verifier(view)
        missing: Sequence[int] = self._take(digest, view, every, verifier)
        tries, waited = 0, False
        while True:
            if not missing:
                if verifier.digest() == digest:
                    self._touch(digest, len(view), token)
                    return True
                _log.warning("%s: the parts of shard %s are damaged; it is fetched again", self.link.name, digest)
                self._delete(digest, len(view))
                verifier, missing, tries = Verifier(view), every, tries + 1
            begun = self._begin(digest, len(view), token)
            if begun.turn == "alone" or tries > 1:
                return False
            if begun.turn == "fetch":
                if begun.known:  # somebody may have filled it since we looked
                    missing = self._take(digest, view, missing, verifier)
                if missing:
                    return None
                self._end(digest, token)
                continue
            if not waited:
                waited = True
                self.tally.add(waits=1)
            missing = self._take_as_they_come(digest, view, missing, verifier, end)
            if missing and time.monotonic() > end:
                _log.warning(
                    "%s: shard %s did not come within %g s; fetching it without the cache",
                    self.link.name, digest, self.timing.wait,
                )  # fmt: skip
                return False

    def _take_as_they_come(
        self, digest: str, view: memoryview, missing: Sequence[int], verifier: Verifier, end: float
    ) -> Sequence[int]:
        """Poll for the parts that another process fetches, until none has come for a while. Returns those missing."""
        quiet, pause = time.monotonic(), 0.002
        while missing and time.monotonic() < end:
            shuffled = random.sample(missing, len(missing))  # they come in any order; some of each place are asked for
            left = self._take(digest, view, shuffled, verifier)
            if len(left) < len(missing):
                missing, quiet, pause = left, time.monotonic(), 0.002
                continue
            if time.monotonic() - quiet > _ASK:
                break
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the tries of several processes
            pause = min(0.05, 1.5 * pause)
        return missing

    def _take(self, digest: str, view: memoryview, parts: Sequence[int], verifier: Verifier) -> Sequence[int]:
        """Copy those of `parts` that are there into `view`; returns the others. When a whole batch is missing, the rest
        is taken for missing, too."""
        missing: list[int] = []
        for first in range(0, len(parts), BATCH):
            batch = parts[first : first + BATCH]
            places = [view[part * PART : (part + 1) * PART] for part in batch]
            with self.link.use(extra=len(batch) * PART / MIN_RATE) as client:
                found = get_into(client, [part_key(self.prefix, digest, part) for part in batch], places)
            for part, place, there in zip(batch, places, found, strict=True):
                if there:
                    verifier.arrived(part * PART, part * PART + len(place))
                else:
                    missing.append(part)
            if not any(found):
                return [*missing, *parts[first + BATCH :]]
        return missing

    def _keep_within(self) -> None:
        """Once a process: the budget may have been lowered since the cache was filled."""
        while not self._within:
            with self.link.use(extra=5) as client:
                dropped = dict(self.index.trim(client))
                delete_parts(client, self.prefix, dropped)
            self._within = not dropped

    # -- the index -------------------------------------------------------------------------------------------------

    def _begin(self, digest: str, size: int, token: str) -> Begun:
        with self.link.use() as client:
            begun = self.index.begin(client, digest, size, token)
            if begun.dropped:
                delete_parts(client, self.prefix, dict(begun.dropped))
        return begun

    def _end(self, digest: str, token: str) -> None:
        with self.link.use() as client:
            self.index.end(client, digest, token, keep=True)

    def _touch(self, digest: str, size: int, token: str) -> None:
        """Note that a shard was read. Parts that the index doesn't count get a place, or go."""
        with self.link.use() as client:
            touched = self.index.touch(client, digest)
            if touched == "noted":
                pipe = client.pipeline(transaction=False)
                for part in range(-(-size // PART)):
                    pipe.pexpire(part_key(self.prefix, digest, part), self.index.keep)
                pipe.execute()
        if touched == "unknown":
            turn = self._begin(digest, size, token).turn
            if turn == "fetch":
                self._end(digest, token)
            elif turn == "alone":
                self._delete(digest, size)

    def _delete(self, digest: str, size: int) -> None:
        with self.link.use() as client:
            delete_parts(client, self.prefix, {digest: size})

    # -- keeping house ---------------------------------------------------------------------------------------------

    def drop(self, digests: Sequence[str] | None = None) -> int:
        """Remove shards, all by default, and then whatever else lies in the index' place; returns how many bytes.
        Raises Unavailable."""
        sizes = self.digests()
        gone = [digest for digest in (sizes if digests is None else digests) if digest in sizes]
        for first in range(0, len(gone), _DROPPED):
            some = gone[first : first + _DROPPED]
            with self.link.use(extra=5) as client:
                for digest in some:
                    self.index.forget(client, digest)
                delete_parts(client, self.prefix, {digest: sizes[digest] for digest in some})
        if digests is None:
            with self.link.use() as client:
                self.index.clear(client)
        return sum(sizes[digest] for digest in gone)

    def usage(self) -> dict[str, Any]:
        """Bytes and shards admitted, the budget, and the counters of all clients so far. Raises Unavailable."""
        with self.link.use(extra=5) as client:
            sizes, counters = self.index.sizes(client), self.index.counters(client)
        return {"bytes": sum(sizes.values()), "items": len(sizes), "budget": self.budget, "counters": counters}

    def digests(self) -> dict[str, int]:
        """Digest → bytes of what is admitted. Raises Unavailable."""
        with self.link.use(extra=5) as client:
            return self.index.sizes(client)

    def in_use(self) -> dict[str, int]:
        """Digest → bytes of the pinned shards that don't give place, since somebody reads them. Raises Unavailable."""
        with self.link.use(extra=5) as client:
            sizes = self.index.sizes(client)
            return {digest: sizes[digest] for digest in self.index.in_use(client) if digest in sizes}

    def holds(self, sizes: Mapping[str, int]) -> set[str]:
        """Those shards (digest → bytes) that are in Redis with all their parts, when what was fetched has been pushed.
        Raises Unavailable."""
        self.settle(self.timing.wait)
        there = self.digests().items() & sizes.items()
        parts = [(digest, key) for digest, size in there for key in part_keys(self.prefix, digest, size)]
        found = {digest for digest, _ in parts}
        for first in range(0, len(parts), _ASKED):
            some = parts[first : first + _ASKED]
            with self.link.use(extra=5) as client:
                pipe = client.pipeline(transaction=False)
                for _, key in some:
                    pipe.exists(key)
                found -= {digest for (digest, _), there in zip(some, pipe.execute(), strict=True) if not there}
        return found

    def settle(self, seconds: float) -> bool:
        """Wait until all that was fetched is in Redis; False when that took too long."""
        return self._pusher.flush(seconds)

    def close(self) -> None:
        """Wait for what is being pushed (a few seconds at most), report the counters, disconnect."""
        if self._process != os.getpid():
            return
        self.settle(min(self.timing.wait, 10.0))
        amounts = self.tally.unreported()
        if amounts and not self.link.open:
            try:
                with self.link.use() as client:
                    self.index.report(client, amounts)
            except Unavailable:
                pass
        self.link.close()


def _remake(url: str, budget: int, ring: int, timing: Timing, prefix: str) -> HotCache:
    return HotCache(url, budget, ring, timing=timing, prefix=prefix)
