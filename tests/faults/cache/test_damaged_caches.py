"""Damage in Redis, on the node's disk and in the lake: mended from below, or told with both digests."""

import json
import os
from pathlib import Path

import pytest
from support.faulty_caches import PART, counted, digest_of, flip, hot, leases, parts, read_all
from support.servers import Redis

from storage.cache import NodeCache, Tiered
from storage.errors import DigestError
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")


@pytest.mark.parametrize("damage", ["one bit", "a missing part", "a short part"])
def test_damage_in_redis_is_mended(zone: Zone, objects: list[StoredObject], redis: Redis, damage: str) -> None:
    with Tiered(zone, None, hot(redis.url)) as cache:
        read_all(cache, objects[:2])
    key = f"shardline:part:{objects[0].digest}:1"
    data = redis.client.get(key)
    if damage == "one bit":
        redis.client.setrange(key, 77, bytes([data[77] ^ 1]))
    elif damage == "a missing part":
        redis.client.delete(key)
    else:
        redis.client.set(key, data[:-1])
    for lake in (1, 0):
        with Tiered(zone, None, hot(redis.url)) as cache:
            read_all(cache, objects[:2])
        assert cache.counters()["lake"].hits == lake
    assert redis.client.get(key) == data
    assert counted(redis) == 2 * objects[0].bytes


@pytest.mark.parametrize("damage", ["one bit", "cut off"])
def test_damage_in_the_node_cache_is_mended(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, damage: str
) -> None:
    def open_cache() -> Tiered:
        return Tiered(zone, NodeCache(tmp_path / "cache", 64 * PART))

    with open_cache() as cache:
        read_all(cache, objects[:2])
    file = tmp_path / "cache" / "shardline" / "objects" / f"{objects[0].digest}.arrow"
    if damage == "one bit":
        flip(file, PART + 5)
    else:
        os.truncate(file, PART)
    for lake in (1, 0):
        with open_cache() as cache:
            read_all(cache, objects[:2])
        assert cache.counters()["lake"].hits == lake
        assert NodeCache(tmp_path / "cache", 64 * PART).usage()["bytes"] == 2 * objects[0].bytes
        assert (
            json.loads((tmp_path / "cache" / "shardline" / "index.json").read_text())["bytes"] == 2 * objects[0].bytes
        )


def test_a_shard_that_lost_a_part_is_not_held(zone: Zone, objects: list[StoredObject], redis: Redis) -> None:
    with Tiered(zone, None, hot(redis.url)) as cache:
        read_all(cache, objects[:2])
        assert cache.hot is not None
        assert cache.hot.settle(10)
        redis.client.delete(f"shardline:part:{objects[0].digest}:3")
        assert cache.hot.holds({obj.digest: obj.bytes for obj in objects}) == {objects[1].digest}


def test_damage_in_the_lake_is_told_with_both_digests(
    zone: Zone, objects: list[StoredObject], redis: Redis, tmp_path: Path
) -> None:
    file = zone.local_path(objects[0].path)
    assert file is not None
    flip(file, PART + 5)
    with Tiered(zone, NodeCache(tmp_path / "cache", 64 * PART), hot(redis.url)) as cache:
        with pytest.raises(DigestError) as caught:
            cache.fetch(objects[0])
        assert (caught.value.expected, caught.value.found) == (objects[0].digest, digest_of(file))
        read_all(cache, objects[1:])
    assert cache.counters()["lake"].hits == 2 + 7
    assert not leases(redis)
    for tier in (cache.node, cache.hot):
        assert tier is not None
        assert set(tier.digests()) == {obj.digest for obj in objects[1:]}
    assert len(parts(redis)) == 7 * 4
    assert not list((tmp_path / "cache").rglob("*.tmp"))
