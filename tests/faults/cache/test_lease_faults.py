"""The lease of a shard that is fetched for all, with a Redis that is slow and processes that are."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.servers import Proxy, Redis, redis_server, wait_for

from storage.cache import HotCache, Tiered, Timing
from storage.digest import digest_bytes
from storage.lake import Zone

pytestmark = pytest.mark.xdist_group("redis")

PART = 1 << 20


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def hot(url: str, lease: float) -> HotCache:
    return HotCache(url, 128 * PART, 0, timing=Timing(timeout=5, lease=lease))


def leases(redis: Redis) -> list[bytes]:
    return list(redis.client.keys("{shardline}:lease:*"))


def wait_for_renewals(redis: Redis, digest: str, times: int) -> None:
    left: list[int] = []

    def renewed() -> bool:
        left.append(redis.client.pttl(f"{{shardline}}:lease:{digest}"))
        return sum(later > before for before, later in itertools.pairwise(left)) >= times

    wait_for(renewed, "the lease to be renewed", seconds=5, every=0.01)


def test_a_shard_that_waits_for_its_turn_keeps_its_lease(redis: Redis) -> None:
    """Eight are under way; nobody else reads the ninth from the lake."""
    first, second = hot(redis.url, lease=1), hot(redis.url, lease=1)
    shards = [os.urandom(PART) for _ in range(9)]
    lake, over = [], Event()

    def fill(cache: HotCache, shard: bytes) -> bytes:
        view = memoryview(bytearray(PART))

        def from_lake(on_range: Any) -> None:
            lake.append(shard)
            over.wait()
            view[:] = shard
            on_range(0, PART)

        cache.fill(digest_bytes(shard), view, from_lake)
        return bytes(view)

    with ThreadPoolExecutor(10) as pool:
        try:
            filled = [pool.submit(fill, first, shard) for shard in shards[:8]]
            wait_for(lambda: len(lake) == 8, "eight to be under way")
            filled.append(pool.submit(fill, first, shards[8]))
            wait_for(lambda: len(leases(redis)) == 9, "the ninth to have its lease")
            elsewhere = pool.submit(fill, second, shards[8])
            wait_for_renewals(redis, digest_bytes(shards[8]), 4)  # for longer than a lease lasts
            assert len(lake) == 8
        finally:
            over.set()
        assert [future.result() for future in filled] == shards
        assert elsewhere.result() == shards[8]
    assert len(lake) == 9
    assert second.tally.counters().hits == 1
    first.close()
    second.close()


def test_a_redis_that_is_slower_than_the_lake(redis: Redis, tmp_path: Path) -> None:
    """All shards are read at once, and Redis takes twice as long for them as a lease lasts: another node waits."""
    zone = Zone(tmp_path / "lake")
    objects = [zone.publish(os.urandom(8 * PART), ".arrow") for _ in range(12)]
    with Proxy(redis.port) as proxy, ThreadPoolExecutor(24) as pool:
        proxy.upload = 25e6
        slow = Tiered(zone, None, hot(f"redis://127.0.0.1:{proxy.port}", lease=2))
        quick = Tiered(zone, None, hot(redis.url, lease=2))
        with slow, quick:
            here = [pool.submit(slow.fetch, obj) for obj in objects]
            wait_for(lambda: redis.client.hlen("{shardline}:sizes") == 12, "all to have begun")
            there = [pool.submit(quick.fetch, obj) for obj in objects]
            for obj, future in zip(objects * 2, here + there, strict=True):
                assert digest_bytes(future.result()) == obj.digest  # type: ignore[arg-type]
        assert (slow.counters()["lake"].hits, quick.counters()["lake"].hits) == (12, 0)


@pytest.mark.parametrize("other", [None, "another"])
def test_a_lease_that_was_lost(redis: Redis, other: str | None) -> None:
    """It expired while the process was stopped. Nobody else has it: it is taken again. Somebody has: nothing is pushed
    any more, and what the other one does stays as it is."""
    cache, shard, over = hot(redis.url, lease=1), os.urandom(2 * PART), Event()
    digest, view = digest_bytes(shard), memoryview(bytearray(2 * PART))
    lease = f"{{shardline}}:lease:{digest}"

    def from_lake(on_range: Any) -> None:
        over.wait()
        view[:] = shard
        on_range(0, 2 * PART)

    with ThreadPoolExecutor(1) as pool:
        try:
            filled = pool.submit(cache.fill, digest, view, from_lake)
            wait_for(lambda: bool(leases(redis)), "the lease")
            token = redis.client.get(lease)
            if other is None:
                redis.client.delete(lease)
                wait_for(lambda: redis.client.get(lease) == token, "the lease to be taken again", seconds=5)
            else:
                redis.client.set(lease, other, px=60_000)
                [share] = cache._pusher._shares
                wait_for(lambda: share.broken, "the loss to be noticed", seconds=5)
        finally:
            over.set()
        assert filled.result() is False
    assert cache.settle(10)
    assert bytes(view) == shard
    assert len(redis.client.keys("shardline:part:*")) == (2 if other is None else 0)
    assert redis.client.get(lease) == (None if other is None else other.encode())
    assert redis.client.hgetall("{shardline}:sizes") == {digest.encode(): b"%d" % (2 * PART)}
    cache.close()
