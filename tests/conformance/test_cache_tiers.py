"""One suite over every cache tier: the node's disk, and Redis in each form that a URL can name."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.servers import Proxy, certificate, redis_cluster, redis_sentinel, redis_server

from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.cache.hot.embedded import Embedded
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")

PART = 1 << 20
REDIS = ("tcp", "unix", "acl", "tls", "cluster", "tls-cluster", "sentinel", "tls-sentinel", "embedded")
RIGHTS = "+@read +@write +@scripting +@connection +time"  # as docs/cache.md says
TIERS = ("node", *REDIS)


@pytest.fixture(scope="module", params=TIERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """The URL of a Redis of that form; None for the node cache. It starts once."""
    folder, form = tmp_path_factory.mktemp("redis"), request.param
    with ExitStack() as stack:
        if form == "node":
            yield None
        elif form == "embedded":
            server = Embedded(folder / "valkey", 256 << 20)
            yield server.url
            server.close()
        elif form.endswith("cluster"):
            tls = certificate(folder / "tls") if form.startswith("tls") else None
            yield stack.enter_context(redis_cluster(folder, tls)).url
        elif form.endswith("sentinel"):
            tls = certificate(folder / "tls") if form.startswith("tls") else None
            yield stack.enter_context(redis_sentinel(folder, tls))
        elif form == "acl":
            server = stack.enter_context(redis_server(folder))
            server.client.execute_command(f"ACL SETUSER reader on >p@ss:w/rd ~* -@all {RIGHTS}")
            server.client.execute_command("ACL SETUSER default off")
            yield server.url.replace("redis://", "redis://reader:p%40ss%3Aw%2Frd@")
        elif form == "tls":
            tls = certificate(folder / "tls")
            server = stack.enter_context(redis_server(folder / "server"))
            proxy = stack.enter_context(Proxy(server.port, tls))
            yield f"rediss://localhost:{proxy.port}?ssl_ca_certs={tls[0]}"
        else:
            yield stack.enter_context(redis_server(folder, unix=form == "unix")).url


@dataclass
class Shop:
    """A zone, and tiers before it; each call of `open` is another reader of the same cache."""

    zone: Zone
    make: Callable[[int, int], NodeCache | HotCache]
    budget: int = 64 * PART
    ring: int = 8 * PART

    def open(self) -> Tiered:
        tier = self.make(self.budget, self.ring)
        return Tiered(self.zone, tier, None) if isinstance(tier, NodeCache) else Tiered(self.zone, None, tier)

    def publish(self, size: int) -> StoredObject:
        return self.zone.publish(os.urandom(size), ".arrow")


@pytest.fixture
def shop(place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    def make(budget: int, ring: int) -> NodeCache | HotCache:
        if place is None:
            return NodeCache(tmp_path / "cache", budget, ring)
        return HotCache(place, budget, ring, prefix=tmp_path.name, timing=Timing(timeout=5))

    shop = Shop(Zone(tmp_path / "zone", str(tmp_path / "lake")), make)
    yield shop
    if place is not None:
        tier = make(PART, 0)
        assert isinstance(tier, HotCache)
        tier.drop()
        tier.close()


def tier_of(cache: Tiered) -> NodeCache | HotCache:
    tier = cache.node or cache.hot
    assert tier is not None
    return tier


def content(source: object) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else bytes(memoryview(source))  # type: ignore[arg-type]


def lake_reads(cache: Tiered) -> int:
    return cache.counters()["lake"].hits


@pytest.mark.parametrize("size", [1, PART - 1, PART, PART + 1, 9 * PART + 5])
def test_what_one_reader_fetched_the_next_one_finds(shop: Shop, size: int) -> None:
    obj = shop.publish(size)
    with shop.open() as first:
        assert content(first.fetch(obj)) == shop.zone.read(obj.path)
    with shop.open() as second:
        assert content(second.fetch(obj)) == shop.zone.read(obj.path)
        assert (lake_reads(first), lake_reads(second)) == (1, 0)
        assert tier_of(second).usage()["counters"]["misses"] == 1
    assert tier_of(second).usage()["counters"]["hits"] == 1


def test_the_budget_is_kept_and_the_pinned_stay(shop: Shop) -> None:
    """Four of eight shards have a place and one the ring: every later epoch finds the four, in any order."""
    shop.budget, shop.ring = 10 * PART, 2 * PART
    objects = [shop.publish(2 * PART) for _ in range(8)]
    for epoch in range(3):
        with shop.open() as cache:
            for obj in objects[epoch:] + objects[:epoch]:
                assert content(cache.fetch(obj)) == shop.zone.read(obj.path)
                if cache.hot is not None:
                    assert cache.hot.settle(10)
            held = tier_of(cache).digests()
            assert sum(held.values()) <= shop.budget
            assert {obj.digest for obj in objects[:4]} <= set(held)
            assert lake_reads(cache) == (8 if epoch == 0 else 4)


def test_readers_that_start_at_once_read_the_lake_once(shop: Shop) -> None:
    objects = [shop.publish(3 * PART) for _ in range(4)]
    readers = [shop.open() for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        found = [(obj, pool.submit(reader.fetch, obj)) for obj in objects for reader in (*readers, *readers)]
        assert all(content(future.result(60)) == shop.zone.read(obj.path) for obj, future in found)
    assert sum(lake_reads(reader) for reader in readers) == len(objects)
    for reader in readers:
        reader.close()


def test_what_was_dropped_is_fetched_again(shop: Shop) -> None:
    objects = [shop.publish(2 * PART) for _ in range(3)]
    with shop.open() as cache:
        for obj in objects:
            cache.fetch(obj)
    with shop.open() as cache:
        assert tier_of(cache).drop([objects[0].digest, "0" * 64]) == 2 * PART
        assert set(tier_of(cache).digests()) == {obj.digest for obj in objects[1:]}
        for obj in objects:
            assert content(cache.fetch(obj)) == shop.zone.read(obj.path)
        assert lake_reads(cache) == 1


def test_a_tier_tells_which_shards_it_holds(shop: Shop) -> None:
    """Of those asked for, and once they are there: what was just fetched from the lake may still be on its way."""
    objects = [shop.publish(9 * PART) for _ in range(4)]
    with shop.open() as cache:
        for obj in objects[:3]:
            cache.fetch(obj)
        assert tier_of(cache).holds({obj.digest: obj.bytes for obj in objects[1:]}) == {
            obj.digest for obj in objects[1:3]
        }


def test_a_shard_that_nobody_reads_gives_its_place(shop: Shop) -> None:
    shop.budget, shop.ring = 2 * PART, 0
    old, new = shop.publish(2 * PART), shop.publish(2 * PART)
    with shop.open() as cache:
        cache.fetch(old)
    with shop.open() as cache:
        cache.fetch(new)
        assert set(tier_of(cache).digests()) == {old.digest}
    tier = shop.make(shop.budget, shop.ring)
    assert tier.in_use() == {old.digest: 2 * PART}
    with idle(tier) as cache:
        assert tier.in_use() == {}
        cache.zone = shop.zone
        cache.fetch(new)
    assert set(tier_of(cache).digests()) == {new.digest}


def idle(tier: NodeCache | HotCache) -> Tiered:
    """A reader for which whatever was read before now has been idle for long enough."""
    if isinstance(tier, NodeCache):
        tier.idle = 0.0
        return Tiered(Zone(Path()), tier, None)
    tier.index = type(tier.index)(**{**vars(tier.index), "idle": 0})
    return Tiered(Zone(Path()), None, tier)


def read_elsewhere(cache: Tiered, objects: list[StoredObject], results: Any) -> None:
    sizes = [len(content(cache.fetch(obj))) for obj in objects]
    cache.close()
    results.put((sizes, lake_reads(cache)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_another_process_shares_the_cache(shop: Shop, method: str) -> None:
    """It finds what was fetched here, by the very same object, and what it fetches is found here."""
    objects = [shop.publish(2 * PART) for _ in range(2)]
    cache = shop.open()
    cache.fetch(objects[0])
    if cache.hot is not None:
        assert cache.hot.settle(10)
    context: Any = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    process = context.Process(target=read_elsewhere, args=(cache, objects, results))
    process.start()
    sizes, reads = results.get()
    assert sizes == [2 * PART, 2 * PART]
    assert reads == 1
    process.join()
    with shop.open() as other:
        other.fetch(objects[1])
        assert lake_reads(other) == 0
    cache.close()
