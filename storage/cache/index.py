"""The hot cache's index: which shards Redis holds, and who fetches one. Atomic over all nodes, by small Lua scripts.

Every key has the hash tag {PREFIX}, so that a script touches one slot of a cluster; the parts themselves are spread.

    {PREFIX}:sizes      hash   digest → bytes of every shard admitted, pinned or in the ring
    {PREFIX}:used       zset   digest → time of last use, ms, of the pinned ones
    {PREFIX}:ring       zset   digest → turn, of those in the ring
    {PREFIX}:totals     hash   pinned, ring: bytes; turn
    {PREFIX}:lease:D    string the token of who fetches shard D; expires
    {PREFIX}:full       string there while Redis refused to take more; expires
    {PREFIX}:counters   hash   what all clients counted

The index is the truth of what is admitted: parts that are missing (their writer died, say) are filled in again under a
lease, and not counted twice. `begin` says the same as policy.py, which a test compares.
"""

from dataclasses import dataclass
from typing import Any, Literal

from storage.cache.address import Client

#: What `begin` answers: fetch it (the lease is yours), wait for who does, or do without the cache.
Turn = Literal["fetch", "wait", "alone"]

# Deleting must work, and the few bytes of the index must fit, when Redis is full.
_HEAD = """#!lua flags=allow-oom
local sizes, used, ring, totals, lease, full = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local function time(given)
  if tonumber(given) > 0 then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function text(number) return string.format('%.0f', number) end
local function total(name) return tonumber(redis.call('HGET', totals, name) or '0') end
local function size_of(digest) return tonumber(redis.call('HGET', sizes, digest) or '0') end
local function forget(digest)
  local size = size_of(digest)
  redis.call('HDEL', sizes, digest)
  if redis.call('ZREM', used, digest) == 1 then redis.call('HINCRBY', totals, 'pinned', text(0 - size)) end
  if redis.call('ZREM', ring, digest) == 1 then redis.call('HINCRBY', totals, 'ring', text(0 - size)) end
  return size
end
"""

_BEGIN = (
    _HEAD
    + """
local digest, size, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local pinned_limit, ring_limit, idle = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease_ms, keep_ms, now = ARGV[7], ARGV[8], time(ARGV[9])
local leases = string.sub(lease, 1, -1 - #digest)
if redis.call('EXISTS', lease) == 1 then return {'wait', 0} end
local known = redis.call('HEXISTS', sizes, digest)
local dropped = {}
if known == 1 then
  redis.call('ZADD', used, 'XX', text(now), digest)
else
  if redis.call('EXISTS', full) == 1 then return {'alone', 0} end
  local function give_place(candidates, over)
    local chosen = {}
    for _, candidate in ipairs(candidates) do
      if over <= 0 then break end
      if redis.call('EXISTS', leases .. candidate) == 0 then -- those that are arriving stay
        chosen[#chosen + 1] = candidate
        over = over - size_of(candidate)
      end
    end
    return over <= 0, chosen
  end
  local over, fits, chosen = total('pinned') + size - pinned_limit, false, {}
  if over <= 0 then
    fits = true
  elseif size <= pinned_limit then
    fits, chosen = give_place(redis.call('ZRANGEBYSCORE', used, '-inf', text(now - idle)), over)
  end
  local place = 'pinned'
  if not fits then
    if size > ring_limit then return {'alone', 0} end
    place = 'ring'
    fits, chosen = give_place(redis.call('ZRANGE', ring, 0, -1), total('ring') + size - ring_limit)
    if not fits then return {'alone', 0} end
  end
  for _, candidate in ipairs(chosen) do
    dropped[#dropped + 1] = candidate
    dropped[#dropped + 1] = text(forget(candidate))
  end
  redis.call('HSET', sizes, digest, text(size))
  redis.call('HINCRBY', totals, place, text(size))
  if place == 'pinned' then
    redis.call('ZADD', used, text(now), digest)
  else
    redis.call('ZADD', ring, redis.call('HINCRBY', totals, 'turn', 1), digest)
  end
end
redis.call('SET', lease, token, 'PX', lease_ms)
for place = 1, 4 do redis.call('PEXPIRE', KEYS[place], keep_ms) end
return {'fetch', known, unpack(dropped)}
"""
)

_RENEW = (
    _HEAD
    + """
local digest, token, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local holder = redis.call('GET', lease)
if holder == token then return redis.call('PEXPIRE', lease, lease_ms) end
if holder or redis.call('HEXISTS', sizes, digest) == 0 then return 0 end
redis.call('SET', lease, token, 'PX', lease_ms)
return 1
"""
)

_END = (
    _HEAD
    + """
local digest, token, keep, full_ms = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
if full_ms > 0 then redis.call('SET', full, '1', 'PX', full_ms) end
if redis.call('GET', lease) == token then
  redis.call('DEL', lease)
  if not keep then forget(digest) end
end
return redis.call('HEXISTS', sizes, digest)
"""
)

_TOUCH = (
    _HEAD
    + """
local digest, stale, keep_ms, now = ARGV[1], tonumber(ARGV[2]), ARGV[3], time(ARGV[4])
local before = redis.call('ZSCORE', used, digest) or redis.call('ZSCORE', ring, digest) and '-1'
if not before then return 0 end
if before == '-1' or now - tonumber(before) < stale then return 1 end
redis.call('ZADD', used, 'XX', text(now), digest)
for place = 1, 4 do redis.call('PEXPIRE', KEYS[place], keep_ms) end
return 2
"""
)

_FORGET = _HEAD + "return forget(ARGV[1])"

_IN_USE = _HEAD + "return redis.call('ZRANGEBYSCORE', used, '(' .. text(time('0') - tonumber(ARGV[1])), '+inf')"


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
        names = ("sizes", "used", "ring", "totals", f"lease:{digest}", "full")
        return client.eval(script, len(names), *map(self.key, names), *arguments)

    def begin(self, client: Client, digest: str, size: int, token: str, now: int = 0) -> Begun:
        """Admit the shard and take its lease, if nobody has it."""
        limits = (self.pinned_limit, self.ring_limit, self.idle, self.lease, self.keep)
        turn, known, *dropped = self._run(client, _BEGIN, digest, digest, size, token, *limits, now)
        pairs = zip(dropped[::2], dropped[1::2], strict=True)
        return Begun(turn.decode(), bool(known), tuple((key.decode(), int(nbytes)) for key, nbytes in pairs))

    def renew(self, client: Client, digest: str, token: str) -> bool:
        """Lengthen the lease, or take it again if it expired and nobody has it. False when it is lost: another has it,
        or the shard has no place any more."""
        return bool(self._run(client, _RENEW, digest, digest, token, self.lease))

    def end(self, client: Client, digest: str, token: str, *, keep: bool, full: int = 0) -> bool:
        """Give the lease back, and with `keep=False` the shard's place too. With `full`, nobody admits anything for so
        many ms. Returns whether the shard still has a place: if not, its parts are to be deleted."""
        return bool(self._run(client, _END, digest, digest, token, int(keep), full))

    def touch(self, client: Client, digest: str, now: int = 0, stale: int | None = None) -> bool:
        """Note a use, if the last one noted is `stale` ms ago; returns whether it was, so that its parts should be
        kept for longer, too."""
        stale = self.idle // 8 if stale is None else stale
        return int(self._run(client, _TOUCH, digest, digest, stale, self.keep, now)) == 2

    def forget(self, client: Client, digest: str) -> int:
        """Give a shard's place back, whoever fetches it; returns its bytes."""
        return int(self._run(client, _FORGET, digest, digest))

    def sizes(self, client: Client) -> dict[str, int]:
        """Digest → bytes of what is admitted."""
        return {key.decode(): int(size) for key, size in client.hgetall(self.key("sizes")).items()}

    def in_use(self, client: Client) -> list[str]:
        """The pinned shards that don't give place: read within `idle` ms."""
        return [digest.decode() for digest in self._run(client, _IN_USE, "", self.idle)]

    def totals(self, client: Client) -> dict[str, int]:
        """Bytes pinned and in the ring."""
        found = {key.decode(): int(value) for key, value in client.hgetall(self.key("totals")).items()}
        return {name: found.get(name, 0) for name in ("pinned", "ring")}

    def report(self, client: Client, amounts: dict[str, int]) -> None:
        """Add to the counters that all clients share."""
        pipe = client.pipeline(transaction=False)
        for name, amount in amounts.items():
            pipe.hincrby(self.key("counters"), name, amount)
        pipe.pexpire(self.key("counters"), self.keep)
        pipe.execute()

    def counters(self, client: Client) -> dict[str, int]:
        return {key.decode(): int(value) for key, value in client.hgetall(self.key("counters")).items()}
