"""Shards and cached copies that are damaged while a stream is read: named or mended, and no batch changes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from support.stream_site import (
    BEFORE,
    REDIS_TIMEOUT,
    ROWS,
    SHARDS,
    SLACK,
    Batches,
    Site,
    assert_nothing_is_left,
    damage,
    open_stream,
    take,
)

from storage.cache import NodeCache, Tiered
from storage.cache.hot.push import part_keys
from storage.cache.tiered import objects_of
from storage.errors import DigestError, LakeError
from storage.lake import Zone

pytestmark = pytest.mark.xdist_group("s3")


@pytest.mark.parametrize(
    ("how", "compressed"),
    [("flipped", False), ("cut off", False), ("flipped", True), ("cut off", True), ("half zeros", True)],
)
def test_a_shard_damaged_meanwhile_is_named_by_the_first_batch_that_needs_it(
    site: Site, lake: tuple[Zone, Batches], packed: Zone, how: str, compressed: bool
) -> None:
    """No tier keeps anything of it, though each has room, and once it is mended, the stream goes on there."""
    zone, roomy = packed if compressed else site.zone, NodeCache(site.node.folder, site.hot.budget)
    site.tiers = Tiered(zone, roomy, site.hot)
    expected, objects, begun = lake[1], site.zone.reader.paths(), time.monotonic()
    steps = {label // ROWS: step for step, (labels, _) in reversed([*enumerate(expected)]) for label in labels}
    shard, first = max(steps.items(), key=lambda item: item[1])
    stored = objects_of(site.zone.manifest().table)[shard]
    whole = bytearray(stored.bytes)
    site.zone.reader.read_into(stored.path, 0, whole)
    with site.tiers, open_stream(site.tiers) as stream:
        seen = take(stream, BEFORE)
        try:
            site.zone.reader.put(stored.path, damage(bytes(whole), how))
            seen += take(stream, first - BEFORE)
            for _ in range(2):
                with pytest.raises(LakeError if how == "cut off" else DigestError, match=stored.path) as caught:
                    next(stream)
            if isinstance(caught.value, DigestError):
                assert caught.value.expected == stored.digest
                assert caught.value.found.startswith("none: ") == (how == "half zeros")
            assert site.hot.settle(SLACK)
            assert stored.digest not in {*site.hot.digests(), *site.node.digests()}
            assert not site.redis.client.keys(f"*{stored.digest}*")
            assert not site.node.temporary(stored.digest).exists()
        finally:
            site.zone.reader.put(stored.path, whole)
        seen += take(stream, len(expected) - len(seen))
    assert time.monotonic() - begun < SLACK
    assert seen == expected
    assert_nothing_is_left(site, objects)


@contextmanager
def part_of_redis(site: Site, change: Callable[[Any, str, bytes], object]) -> Iterator[None]:
    """Change a part of a shard that only Redis has. Afterwards it is there again."""
    key = part_keys("shardline", min(site.hot.digests().keys() - site.node.digests().keys()), 1)[0]
    data = site.redis.client.get(key)
    change(site.redis.client, key, data)
    yield
    assert site.redis.client.get(key) == data


@contextmanager
def file_of_the_node(site: Site, how: str) -> Iterator[None]:
    file = site.node.path(min(site.node.digests()))
    file.write_bytes(damage(file.read_bytes(), how))
    yield


@contextmanager
def redis_trickles(site: Site) -> Iterator[None]:
    """Each piece of a part comes in time."""
    site.redis_proxy.slow(200_000)
    yield
    site.redis_proxy.heal()
    assert site.told("The lake is read instead")


#: What happens to full caches before they are read again, and how often the lake is read then.
HARMS: dict[str, tuple[Callable[[Site], AbstractContextManager[None]], range]] = {
    "a bit in Redis": (
        lambda site: part_of_redis(site, lambda redis, key, data: redis.set(key, damage(data, "flipped"))),
        range(1, 2),
    ),
    "a part missing in Redis": (
        lambda site: part_of_redis(site, lambda redis, key, _: redis.delete(key)),
        range(1, 2),
    ),
    "a bit of the node's": (lambda site: file_of_the_node(site, "flipped"), range(1)),
    "a file of the node's cut off": (lambda site: file_of_the_node(site, "cut off"), range(1)),
    "Redis trickles": (redis_trickles, range(1, 2 * SHARDS)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_what_the_caches_hold_changes_no_batch(
    site: Site, lake: tuple[Zone, Batches], packed: Zone, harm: str
) -> None:
    happens, lake_is_read = HARMS[harm]
    site.read(packed)
    with site.tiers, open_stream(site.tiers) as stream:
        take(stream, len(lake[1]) // 2)
    assert len(site.hot.digests()) == SHARDS
    objects, begun = packed.reader.paths(), time.monotonic()
    site.read(packed)
    with happens(site), site.tiers, open_stream(site.tiers) as stream:
        seen = take(stream, len(lake[1]))
    assert time.monotonic() - begun < 2 * REDIS_TIMEOUT + SLACK
    assert seen == lake[1]
    assert site.tiers.counters()["lake"].hits in lake_is_read
    assert_nothing_is_left(site, objects)
