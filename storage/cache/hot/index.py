"""The hot cache's index: which shards Redis holds, and who fetches one. Atomic over all nodes, by small Lua scripts.

Every key has the hash tag {PREFIX}, so that a script touches one slot of a cluster; the parts themselves are spread.

    {PREFIX}:sizes      hash   digest → bytes of every shard admitted, pinned or in the ring
    {PREFIX}:used       zset   digest → time of last use, ms, of the pinned ones
    {PREFIX}:ring       zset   digest → turn, of those in the ring
    {PREFIX}:totals     hash   pinned, ring: bytes; turn
    {PREFIX}:lease:D    string the token of who fetches shard D; expires
    {PREFIX}:full       string there while Redis refused to take more; expires
    {PREFIX}:counted    string there while the totals needn't be counted anew; expires
    {PREFIX}:counters   hash   what all clients counted

The index is the truth of what is admitted: parts that are missing (their writer died, say) are filled in again under a
lease, and not counted twice. `begin` says the same as policy.py, which a test compares. What doesn't look as it should
is mended (see scripts.py), and never believed: no size is larger than the budget.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from redis.exceptions import ResponseError

from storage.cache.hot import scripts
from storage.cache.hot.address import Client

#: What `begin` answers: fetch it (the lease is yours), wait for who does, or do without the cache.
Turn = Literal["fetch", "wait", "alone"]
Touched = Literal["unknown", "fresh", "noted"]
_NUMBER = re.compile(rb"\d{1,16}")


@dataclass(frozen=True)
class Begun:
    """The answer to `begin`: `known` when the shard was admitted before, `dropped` (digest, bytes) to be deleted."""

    turn: Turn
    known: bool = False
    dropped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Index:
    """The scripts with this client's limits; times in ms. `now` is for tests: 0 is the server's own clock."""

    prefix: str
    pinned_limit: int
    ring_limit: int
    idle: int
    keep: int
    lease: int

    def key(self, name: str) -> str:
        return f"{{{self.prefix}}}:{name}"

    def _run(self, client: Client, script: str, digest: str, *arguments: Any) -> Any:
        names = ("sizes", "used", "ring", "totals", f"lease:{digest}", "full", "counted")
        return client.eval(script, len(names), *map(self.key, names), *arguments)

    def begin(self, client: Client, digest: str, size: int, token: str, now: int = 0) -> Begun:
        """Admit the shard and take its lease, if nobody has it."""
        limits = (self.pinned_limit, self.ring_limit, self.idle, self.lease, self.keep)
        turn, known, dropped = self._run(client, scripts.BEGIN, digest, digest, size, token, *limits, now)
        return Begun(turn.decode(), bool(known), self._pairs(dropped))

    def trim(self, client: Client) -> tuple[tuple[str, int], ...]:
        """Drop some of what is beyond the budget, if it was lowered: (digest, bytes), whose parts are to be deleted."""
        return self._pairs(self._run(client, scripts.TRIM, "", self.pinned_limit, self.ring_limit))

    def _pairs(self, found: list[bytes]) -> tuple[tuple[str, int], ...]:
        """(digest, bytes) of what was dropped; none has more than the budget."""
        sizes = (min(int(nbytes), self.pinned_limit + self.ring_limit) for nbytes in found[1::2])
        return tuple(zip(map(_name, found[::2]), sizes, strict=True))

    def renew(self, client: Client, digest: str, token: str) -> bool:
        """Lengthen the lease, or take it again if it expired and nobody has it. False when it is lost: another has it,
        or the shard has no place any more."""
        return bool(self._run(client, scripts.RENEW, digest, digest, token, self.lease))

    def end(self, client: Client, digest: str, token: str, *, keep: bool, full: int = 0) -> bool:
        """Give the lease back, and with `keep=False` the shard's place too. With `full`, nobody admits anything for so
        many ms. Returns whether the shard still has a place: if not, its parts are to be deleted."""
        return bool(self._run(client, scripts.END, digest, digest, token, int(keep), full))

    def touch(self, client: Client, digest: str, now: int = 0, stale: int | None = None) -> Touched:
        """Note a use, if the last one noted is `stale` ms ago. `noted`: it was, so that its parts should be kept for
        longer, too; `unknown`: the shard has no place."""
        stale = self.idle // 8 if stale is None else stale
        found = int(self._run(client, scripts.TOUCH, digest, digest, stale, self.keep, now))
        return "noted" if found == 2 else "fresh" if found == 1 else "unknown"

    def forget(self, client: Client, digest: str) -> int:
        """Give a shard's place back, whoever fetches it; returns its bytes."""
        return int(self._run(client, scripts.FORGET, digest, digest))

    def sizes(self, client: Client) -> dict[str, int]:
        """Digest → bytes of what is admitted. Raises redis-py's errors."""
        found = _numbers(client.hgetall(self.key("sizes")))
        return {digest: size for digest, size in found.items() if size <= self.pinned_limit + self.ring_limit}

    def clear(self, client: Client) -> None:
        """Forget all shards, and whatever else lies in the index' place."""
        client.unlink(*map(self.key, ("sizes", "used", "ring", "totals", "full", "counted")))

    def in_use(self, client: Client) -> list[str]:
        """The pinned shards that don't give place: read within `idle` ms."""
        return [_name(digest) for digest in self._run(client, scripts.IN_USE, "", self.idle)]

    def totals(self, client: Client) -> dict[str, int]:
        """Bytes pinned and in the ring."""
        found = _numbers(client.hgetall(self.key("totals")))
        return {name: found.get(name, 0) for name in ("pinned", "ring")}

    def report(self, client: Client, amounts: dict[str, int]) -> None:
        """Add to the counters that all clients share."""
        pipe = client.pipeline(transaction=False)
        for name, amount in amounts.items():
            pipe.hincrby(self.key("counters"), name, amount)
        pipe.pexpire(self.key("counters"), self.keep)
        if any(isinstance(reply, ResponseError) for reply in pipe.execute(raise_on_error=False)):
            client.unlink(self.key("counters"))  # something else lies there

    def counters(self, client: Client) -> dict[str, int]:
        return _numbers(client.hgetall(self.key("counters")))


def _name(found: bytes) -> str:
    return found.decode(errors="replace")


def _numbers(found: dict[bytes, bytes]) -> dict[str, int]:
    """Those of a hash's values that are numbers, as we write them."""
    return {_name(key): int(value) for key, value in found.items() if _NUMBER.fullmatch(value)}
