"""A Redis to which others wrote, by mistake or on purpose: nothing that it says is believed, and it is mended."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import Redis, redis_server

from storage.cache import HotCache, Tiered, Timing
from storage.cache.hot.receive import get_into
from storage.digest import digest_bytes
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")

PART = 1 << 20
BUDGET = 64 * PART
HUGE = 1 << 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis"), unix=True) as server:
        yield server


@pytest.fixture
def redis(server: Redis) -> Any:
    server.client.flushall()
    return server.client


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "lake")


@pytest.fixture
def objects(zone: Zone) -> list[StoredObject]:
    return [zone.publish(os.urandom(3 * PART + 7), ".arrow") for _ in range(4)]


def hot(server: Redis, budget: int = BUDGET, ring: int = 16 * PART, **options: Any) -> HotCache:
    return HotCache(server.url, budget, ring, timing=Timing(**{"timeout": 2, "wait": 5, **options}))


def read_all(zone: Zone, cache: HotCache, objects: list[StoredObject]) -> dict[str, Any]:
    """Fetch and check all by a reader of its own; returns its counters."""
    with Tiered(zone, hot=cache) as tiers:
        for obj in objects:
            assert digest_bytes(tiers.fetch(obj)) == obj.digest
        cache.settle(10)
        return tiers.counters()


def key(name: str) -> str:
    return f"{{shardline}}:{name}"


def test_a_size_that_is_absurd_is_not_believed(
    server: Redis, redis: Any, zone: Zone, objects: list[StoredObject]
) -> None:
    """It stood for a billion parts, each of which was asked for, and deleted."""
    read_all(zone, hot(server), objects[:2])
    redis.hset(key("sizes"), mapping={"f" * 64: HUGE, objects[0].digest: HUGE, "no digest": "no number"})
    redis.hset(key("sizes"), b"\xff\xfe", -1)
    redis.zadd(key("used"), {"f" * 64: time.time() * 1000, "a" * 64: 0})
    cache, begun = hot(server), time.monotonic()
    assert cache.digests() == {objects[1].digest: objects[1].bytes}
    assert cache.in_use() == {objects[1].digest: objects[1].bytes}
    assert cache.usage()["bytes"] == objects[1].bytes
    assert cache.holds({obj.digest: obj.bytes for obj in objects}) == {objects[1].digest}
    assert cache.drop() == objects[1].bytes
    assert time.monotonic() - begun < 10
    assert not redis.exists(*map(key, ("sizes", "used", "ring", "totals")))
    read_all(zone, cache, objects)
    assert read_all(zone, hot(server), objects)["hot"].hits == len(objects)


def test_what_gives_its_place_is_deleted_up_to_the_budget(
    server: Redis, redis: Any, zone: Zone, objects: list[StoredObject]
) -> None:
    """However large it claims to be: its parts are named one by one."""
    read_all(zone, hot(server), objects)
    redis.hset(key("sizes"), "f" * 64, 1000 * BUDGET)
    redis.zadd(key("used"), {"f" * 64: 0})
    redis.hincrby(key("totals"), "pinned", 1000 * BUDGET)
    redis.config_resetstat()
    read_all(zone, hot(server), objects)
    assert redis.hget(key("sizes"), "f" * 64) is None, "it was dropped"
    deleted = redis.info("commandstats").get("cmdstat_unlink", {"calls": 0})["calls"]
    assert deleted == BUDGET // PART


def test_numbers_without_an_end_are_none(server: Redis, redis: Any, zone: Zone, objects: list[StoredObject]) -> None:
    """Python refuses to read them."""
    read_all(zone, hot(server), objects)
    for name, field in (("sizes", objects[0].digest), ("totals", "ring"), ("counters", "hits")):
        redis.hset(key(name), field, "9" * 5000)
    cache = hot(server)
    assert cache.digests() == {obj.digest: obj.bytes for obj in objects[1:]}
    assert cache.usage()["bytes"] == sum(obj.bytes for obj in objects[1:])
    assert read_all(zone, cache, objects)["hot"].failures == 0


@pytest.mark.parametrize("totals", [{"pinned": HUGE, "ring": HUGE}, {"pinned": "nan", "ring": "-5", "turn": "x"}])
def test_totals_that_are_wrong_are_counted_anew(
    server: Redis, redis: Any, zone: Zone, objects: list[StoredObject], totals: dict[str, Any]
) -> None:
    """Else a cache that seems full would take nothing, for ever."""
    redis.hset(key("totals"), mapping=totals)
    read_all(zone, hot(server), objects)
    found = hot(server)
    assert found.holds({obj.digest: obj.bytes for obj in objects}) == {obj.digest for obj in objects}
    with found.link.use() as client:
        assert sum(found.index.totals(client).values()) == sum(obj.bytes for obj in objects)


def as_list(client: Any, name: str) -> None:
    client.delete(name)
    client.rpush(name, *"abc")


def as_text(client: Any, name: str) -> None:
    client.set(name, "a text", keepttl=True)


def as_nothing(client: Any, name: str) -> None:
    client.delete(name)
    client.set(name, b"")


def as_something_long(client: Any, name: str) -> None:
    client.set(name, bytes(40 << 20))


@pytest.mark.parametrize("other", [as_list, as_text, as_nothing, as_something_long])
def test_a_part_of_another_kind_is_mended(
    server: Redis, redis: Any, zone: Zone, objects: list[StoredObject], other: Callable[[Any, str], None]
) -> None:
    read_all(zone, hot(server), objects)
    for obj in objects[:2]:
        other(redis, f"shardline:part:{obj.digest}:1")
    counters = read_all(zone, hot(server), objects)
    assert (counters["hot"].failures, counters["hot"].hits, counters["lake"].hits) == (0, 2, 2)
    counters = read_all(zone, hot(server), objects)
    assert (counters["hot"].failures, counters["hot"].hits, counters["lake"].hits) == (0, 4, 0)


@pytest.mark.parametrize("name", ["sizes", "used", "ring", "totals", "full", "counted", "counters", "lease:{digest}"])
@pytest.mark.parametrize("other", [as_list, as_text])
def test_a_key_of_the_index_of_another_kind_is_mended(
    server: Redis, redis: Any, zone: Zone, objects: list[StoredObject], name: str, other: Callable[[Any, str], None]
) -> None:
    read_all(zone, hot(server), objects)
    other(redis, key(name.format(digest=objects[0].digest)))
    redis.delete(f"shardline:part:{objects[0].digest}:0")
    begun = time.monotonic()
    assert read_all(zone, hot(server), objects)["hot"].failures == 0
    assert read_all(zone, hot(server), objects)["hot"].failures == 0
    assert time.monotonic() - begun < 4, "nobody waits for a lease that never ends"
    assert hot(server).holds({obj.digest: obj.bytes for obj in objects}) == {obj.digest for obj in objects}
    assert hot(server).usage()["bytes"] == sum(obj.bytes for obj in objects)


def test_a_longer_value_is_not_received(redis: Any) -> None:
    """Of tens of megabytes, or of a gigabyte, only what the kernel has taken by then."""
    redis.set("long", bytes(100 << 20))
    redis.set("longer", bytes(PART + 5000))
    redis.set("good", b"g" * PART)
    places = [memoryview(bytearray(PART)) for _ in range(3)]
    assert get_into(redis, ["longer", "good", "none"], places) == [False, True, False]
    assert bytes(places[1]) == b"g" * PART
    before = redis.info("stats")["total_net_output_bytes"]
    assert get_into(redis, ["good", "long", "good"], places) == [True, False, False]
    assert get_into(redis, ["good"], places[:1]) == [True]
    assert redis.info("stats")["total_net_output_bytes"] - before < 50 << 20


def test_a_budget_that_was_lowered_is_kept(server: Redis, redis: Any, zone: Zone, objects: list[StoredObject]) -> None:
    """Even where all that is read is there already: what was read longest ago gives its place."""
    read_all(zone, hot(server), objects)
    for age, obj in enumerate(reversed(objects)):
        redis.zadd(key("used"), {obj.digest: time.time() * 1000 - age * 1000})
    kept = {obj.digest: obj.bytes for obj in objects[-2:]}
    small = hot(server, sum(kept.values()) + objects[0].bytes, objects[0].bytes)
    assert read_all(zone, small, objects[-1:])["lake"].hits == 0
    assert small.holds({obj.digest: obj.bytes for obj in objects}) == kept.keys()
    assert len(redis.keys("shardline:part:*")) == 2 * 4
    read_all(zone, small, objects)
    assert small.usage()["bytes"] <= small.budget
