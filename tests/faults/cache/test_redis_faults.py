"""Redis with real faults. In every case what is delivered is what an undisturbed run delivers, within bounded time."""

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.faulty_caches import PART, digest_of, hot, leases, lines, parts, read_all
from support.servers import Proxy, Redis, redis_cluster, redis_server, wait_for

from storage.cache import Tiered
from storage.cache.hot import cache as hot_module
from storage.cache.hot.push import BATCH
from storage.cache.hot.receive import get_into
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")


def test_redis_killed_and_brought_back(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = None
    with redis_server(tmp_path / "redis") as first:
        cache = Tiered(zone, None, hot(first.url))
        read_all(cache, objects[:4])
        assert cache.hot is not None
        assert cache.hot.settle(10)
        first.process.kill()
        first.process.wait()
        assert read_all(cache, objects) < 5
        assert cache.counters()["lake"].hits == 12
        assert len(lines(caplog)) == 1
        assert "The lake is read instead" in lines(caplog)[0]
    with redis_server(tmp_path / "redis", port=first.port) as second:

        def comes_back() -> bool:
            read_all(cache, objects[:1])
            return bool(cache.counters()["hot"].hits)

        wait_for(comes_back, "the hot cache to be used again", seconds=20)
        assert cache.hot.settle(10)
        cache.close()
        assert "answers again" in lines(caplog)[-1]
        assert not leases(second)


def test_redis_paused_costs_one_time_out(
    zone: Zone, objects: list[StoredObject], redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Tiered(zone, None, hot(redis.url, timeout=2))
    read_all(cache, objects)
    redis.process.send_signal(signal.SIGSTOP)
    try:
        assert 1.9 < read_all(cache, objects[:1]) < 4
        assert read_all(cache, objects[1:2]) < 1.9  # the breaker is open: nothing is waited for
        assert len(lines(caplog)) == 1
    finally:
        redis.process.send_signal(signal.SIGCONT)
    hits = cache.counters()["hot"].hits

    def comes_back() -> bool:
        read_all(cache, objects[2:3])
        return cache.counters()["hot"].hits > hits

    wait_for(comes_back, "the hot cache to be used again", seconds=20)
    cache.close()


def test_a_slow_redis_is_taken_for_gone(
    zone: Zone, objects: list[StoredObject], redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers each read within the time-out, a little at a time: a shard would take half a minute."""
    with Proxy(redis.port) as proxy:
        cache = Tiered(zone, None, hot(f"redis://127.0.0.1:{proxy.port}"))
        read_all(cache, objects)
        assert cache.hot is not None
        assert cache.hot.settle(10)
        proxy.rate = 100_000
        assert read_all(cache, objects) < 5
        assert cache.counters()["lake"].hits == 16
        assert len(lines(caplog)) == 1
        cache.close()


def test_a_full_redis_is_no_error(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its maxmemory is far below the budget: what fits is kept whole, the rest comes from the lake."""
    with redis_server(tmp_path / "redis", memory="14mb") as redis:
        for _ in range(2):
            cache = Tiered(zone, None, hot(redis.url, timeout=10))
            read_all(cache, objects)
            cache.close()
        kept = cache.counters()["hot"].hits
        assert 1 <= kept < 8
        assert cache.counters()["lake"].hits == 8 - kept
        assert cache.counters()["hot"].failures == 0
        assert len(parts(redis)) == 4 * kept
        assert redis.client.hlen("{shardline}:sizes") == kept
        assert not leases(redis)
        assert not lines(caplog)


@pytest.mark.parametrize("form", ["one server", "cluster"])
def test_a_redis_that_evicts_is_told_once(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    with ExitStack() as stack:
        if form == "cluster":
            cluster = stack.enter_context(redis_cluster(tmp_path / "redis"))
            url, clients = cluster.url, [node.client for node in cluster.nodes]
        else:
            server = stack.enter_context(redis_server(tmp_path / "redis"))
            url, clients = server.url, [server.client]
        for client in clients:
            client.config_set("maxmemory-policy", "allkeys-lru")
        with Tiered(zone, None, hot(url, timeout=5)) as cache, ThreadPoolExecutor(4) as pool:
            assert [digest_of(source) for source in pool.map(cache.fetch, objects)] == [obj.digest for obj in objects]
            read_all(cache, objects)
        assert cache.counters()["hot"].failures == 0
        [line] = lines(caplog)
        assert "maxmemory-policy is allkeys-lru" in line
        assert "`maxmemory-policy noeviction`" in line


def test_a_redis_that_does_not_tell_its_policy_is_used(
    zone: Zone, objects: list[StoredObject], redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis.client.config_set("maxmemory-policy", "allkeys-lru")
    redis.client.execute_command("ACL SETUSER reader on >word ~* +@all -info -config")
    with Tiered(zone, None, hot(redis.url.replace("redis://", "redis://reader:word@"), timeout=5)) as cache:
        read_all(cache, objects)
    assert cache.counters()["hot"].failures == 0
    assert len(parts(redis)) == 4 * len(objects)
    assert not lines(caplog)


def test_a_wrong_password_costs_the_tier_and_is_not_told(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(tmp_path / "redis", requirepass="right") as redis:
        cache = Tiered(zone, None, hot(f"redis://:s3cret@127.0.0.1:{redis.port}"))
        assert read_all(cache, objects) < 5
        assert cache.counters()["lake"].hits == 8
        cache.close()
        assert len(lines(caplog)) == 1
        assert "s3cret" not in caplog.text
        assert "s3cret" not in repr(cache.hot)


def test_a_redis_that_was_never_there(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/none", "redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/service"):
        with Tiered(zone, None, hot(url)) as cache:
            assert read_all(cache, objects) < 10
            assert cache.counters()["lake"].hits == 8


@pytest.mark.parametrize(("fault", "holds"), [("killed", "the index"), ("killed", "parts"), ("paused", "parts")])
def test_a_master_of_a_cluster_that_dies_amid_a_read(
    zone: Zone,
    objects: list[StoredObject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    holds: str,
) -> None:
    """Four threads read; of the largest shard the first parts have come. What isn't there any more comes from the lake,
    within a few time-outs, and is in the cluster again when the master is."""
    objects = [zone.publish(os.urandom(20 * PART), ".arrow"), *objects]
    with redis_cluster(tmp_path / "redis") as cluster, ThreadPoolExecutor(4) as pool:
        with Tiered(zone, None, hot(cluster.url, timeout=5)) as cache:
            read_all(cache, objects)
        lost = (cluster.holder("{shardline}:sizes") + (holds == "parts")) % 3
        process = cluster.nodes[lost].process

        def harm(client: Any, keys: list[str], places: list[memoryview]) -> list[bool]:
            found = get_into(client, keys, places)
            if len(keys) == BATCH:
                monkeypatch.setattr(hot_module, "get_into", get_into)
                process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            return found

        cache = Tiered(zone, None, hot(cluster.url, lease=1))
        monkeypatch.setattr(hot_module, "get_into", harm)
        begun = time.monotonic()
        for source, obj in zip(pool.map(cache.fetch, objects), objects, strict=True):
            assert digest_of(source) == obj.digest
        assert time.monotonic() - begun < 5
        assert read_all(cache, objects * 2) < 5  # a time-out for each would be 9 s
        assert "The lake is read instead" in lines(caplog)[0]
        assert cache.hot is not None
        breaker = cache.hot.link._breaker
        until = breaker.until

        def tries_again() -> bool:
            assert read_all(cache, objects[1:2]) < 3
            return breaker.until > until

        wait_for(tries_again, "another attempt while the master is away", seconds=20, every=0.2)
        if fault == "killed":
            process.wait()
            cluster.restart(lost)
        else:
            process.send_signal(signal.SIGCONT)

        def comes_back() -> bool:
            hits = cache.counters()["hot"].hits
            read_all(cache, objects)
            return cache.counters()["hot"].hits == hits + len(objects)

        wait_for(comes_back, "all shards to be in the hot cache again", seconds=20, every=0.2)
        cache.close()
        with Tiered(zone, None, hot(cluster.url, timeout=5)) as cache:
            read_all(cache, objects)
            assert cache.counters()["lake"].hits == 0
            assert cache.hot is not None
            assert cache.hot.usage()["bytes"] == sum(obj.bytes for obj in objects)


def test_what_is_read_is_kept_for_longer(zone: Zone, objects: list[StoredObject], redis: Redis) -> None:
    """Parts expire, so that nothing leaks, but not while their shard is in use."""
    with Tiered(zone, None, hot(redis.url, idle=1000)) as cache:
        read_all(cache, objects[:1])
    assert all(1_200_000 < redis.client.pttl(key) <= 1_250_000 for key in parts(redis))
    for key in parts(redis):
        redis.client.pexpire(key, 600_000)
    redis.client.zincrby("{shardline}:used", -400_000, objects[0].digest)
    with Tiered(zone, None, hot(redis.url, idle=1000)) as cache:
        read_all(cache, objects[:1])
    assert cache.counters()["lake"].hits == 0
    assert all(redis.client.pttl(key) > 1_200_000 for key in parts(redis))


def test_what_came_while_one_asked_is_taken(
    zone: Zone, objects: list[StoredObject], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for a shard and the lease, another fetched it: the lake is left alone."""
    slow, quick = hot(redis.url, timeout=5), Tiered(zone, None, hot(redis.url, timeout=5))
    begin = slow._begin

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(slow, "_begin", begin)
        read_all(quick, objects[:1])
        assert quick.hot is not None
        assert quick.hot.settle(10)
        return begin(*arguments)

    monkeypatch.setattr(slow, "_begin", late)
    with Tiered(zone, None, slow) as cache, quick:
        read_all(cache, objects[:1])
    assert (cache.counters()["lake"].hits, cache.counters()["hot"].hits) == (0, 1)
    assert not leases(redis)
