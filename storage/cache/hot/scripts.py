"""The Lua scripts of the hot cache's index (see index.py), each of which Redis runs as one step.

They believe nothing that they find, since other programs, and people, may write to the same Redis: a key of another
type is removed, a lease or a mark without an end is none, a number that is none counts as 0, and a shard of more bytes
than the budget, or without a place, is unknown. When there is no room, the totals are counted anew, every ten minutes
at most.
"""

# Deleting must work, and the few bytes of the index must fit, when Redis is full.
_HEAD = """#!lua flags=allow-oom
local sizes, used, ring, totals, lease, full, counted = unpack(KEYS)
local kinds = {'hash', 'zset', 'zset', 'hash', 'string', 'string', 'string'}
for place, kind in ipairs(kinds) do
  local found = redis.call('TYPE', KEYS[place])['ok']
  local strange = found ~= 'none' and found ~= kind
  if place > 4 and found == 'string' then -- these are short, so that nothing waits for ever
    local left = redis.call('PTTL', KEYS[place])
    strange = left < 0 or left > 3600000
  end
  if strange then redis.call('DEL', KEYS[place]) end
end
local function time(given)
  if tonumber(given) > 0 then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function text(number) return string.format('%.0f', number) end
local function number(found) -- nil unless it is a whole one of 0 to 2^53
  local value = tonumber(found or '0')
  if value and value >= 0 and value <= 9007199254740992 and value % 1 == 0 then return value end
end
local function total(name) return number(redis.call('HGET', totals, name)) or 0 end
local function add(name, delta) redis.call('HSET', totals, name, text(math.max(0, total(name) + delta))) end
local function size_of(digest) return number(redis.call('HGET', sizes, digest)) or 0 end
local function place_of(digest)
  return redis.call('ZSCORE', used, digest) and 'pinned' or redis.call('ZSCORE', ring, digest) and 'ring'
end
local function forget(digest)
  local size = size_of(digest)
  redis.call('HDEL', sizes, digest)
  if redis.call('ZREM', used, digest) == 1 then add('pinned', 0 - size) end
  if redis.call('ZREM', ring, digest) == 1 then add('ring', 0 - size) end
  return size
end
local dropped = {}
local function drop(digest)
  dropped[#dropped + 1] = digest
  dropped[#dropped + 1] = text(forget(digest))
end
local function is_arriving(digest)
  return redis.call('EXISTS', string.gsub(lease, '[^:]*$', '') .. digest) == 1
end
local function keep_budget(pinned_limit, ring_limit) -- it was lowered, say
  if total('pinned') + total('ring') <= pinned_limit + ring_limit then return end
  for _, part in ipairs({{ring, 'ring', ring_limit}, {used, 'pinned', pinned_limit}}) do
    for _, digest in ipairs(redis.call('ZRANGE', part[1], 0, 255)) do
      if total(part[2]) <= part[3] then break end
      if not is_arriving(digest) then drop(digest) end
    end
  end
end
"""

BEGIN = (
    _HEAD
    + """
local digest, size, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local pinned_limit, ring_limit, idle = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease_ms, keep_ms, now = ARGV[7], ARGV[8], time(ARGV[9])
if redis.call('EXISTS', lease) == 1 then return {'wait', 0, {}} end
local known = redis.call('HEXISTS', sizes, digest)
if known == 1 and (size_of(digest) ~= size or not place_of(digest)) then
  forget(digest)
  known = 0
end
if known == 1 then
  redis.call('ZADD', used, 'XX', text(now), digest)
else
  if redis.call('EXISTS', full) == 1 then return {'alone', 0, {}} end
  keep_budget(pinned_limit, ring_limit)
  local function give_place(candidates, over)
    local chosen = {}
    for _, candidate in ipairs(candidates) do
      if over <= 0 then break end
      if not is_arriving(candidate) then
        chosen[#chosen + 1] = candidate
        over = over - size_of(candidate)
      end
    end
    return over <= 0, chosen
  end
  local function find_place()
    local over = total('pinned') + size - pinned_limit
    if over <= 0 then return 'pinned', {} end
    if size <= pinned_limit then
      local fits, chosen = give_place(redis.call('ZRANGEBYSCORE', used, '-inf', text(now - idle)), over)
      if fits then return 'pinned', chosen end
    end
    if size > ring_limit then return nil end
    local fits, chosen = give_place(redis.call('ZRANGE', ring, 0, -1), total('ring') + size - ring_limit)
    if fits then return 'ring', chosen end
  end
  local function recount()
    if redis.call('SET', counted, '1', 'PX', math.min(tonumber(keep_ms), 600000), 'NX') == false then return false end
    local sums, before = {pinned = 0, ring = 0}, total('pinned') + total('ring')
    local all = redis.call('HGETALL', sizes)
    for at = 1, #all, 2 do
      local bytes, place = number(all[at + 1]), place_of(all[at])
      if bytes and place and bytes <= pinned_limit + ring_limit then
        sums[place] = sums[place] + bytes
      else
        drop(all[at])
      end
    end
    for _, part in ipairs({used, ring}) do
      for _, member in ipairs(redis.call('ZRANGE', part, 0, -1)) do
        if redis.call('HEXISTS', sizes, member) == 0 then redis.call('ZREM', part, member) end
      end
    end
    redis.call('HSET', totals, 'pinned', text(sums.pinned), 'ring', text(sums.ring))
    return sums.pinned + sums.ring < before
  end
  local place, chosen = find_place()
  if place ~= 'pinned' and recount() then place, chosen = find_place() end
  if not place then return {'alone', 0, dropped} end
  for _, candidate in ipairs(chosen) do drop(candidate) end
  redis.call('HSET', sizes, digest, text(size))
  add(place, size)
  if place == 'pinned' then
    redis.call('ZADD', used, text(now), digest)
  else
    local turn = total('turn') + 1
    redis.call('HSET', totals, 'turn', text(turn))
    redis.call('ZADD', ring, turn, digest)
  end
end
redis.call('SET', lease, token, 'PX', lease_ms)
for place = 1, 4 do redis.call('PEXPIRE', KEYS[place], keep_ms) end
return {'fetch', known, dropped}
"""
)

RENEW = (
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

END = (
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

TOUCH = (
    _HEAD
    + """
local digest, stale, keep_ms, now = ARGV[1], tonumber(ARGV[2]), ARGV[3], time(ARGV[4])
local before = redis.call('ZSCORE', used, digest) or redis.call('ZSCORE', ring, digest) and '-1'
if not before or redis.call('HEXISTS', sizes, digest) == 0 then return 0 end
if before == '-1' or now - tonumber(before) < stale then return 1 end
redis.call('ZADD', used, 'XX', text(now), digest)
for place = 1, 4 do redis.call('PEXPIRE', KEYS[place], keep_ms) end
return 2
"""
)

FORGET = _HEAD + "return forget(ARGV[1])"

IN_USE = _HEAD + "return redis.call('ZRANGEBYSCORE', used, '(' .. text(time('0') - tonumber(ARGV[1])), '+inf')"

TRIM = (
    _HEAD
    + """
keep_budget(tonumber(ARGV[1]), tonumber(ARGV[2]))
return dropped
"""
)
