"""Caches with real faults. In every case what is delivered is what an undisturbed run delivers, within bounded time."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support.servers import Proxy, Redis, redis_cluster, redis_server, wait_for

from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.cache.hot import cache as hot_module
from storage.cache.hot.push import BATCH
from storage.cache.hot.receive import get_into
from storage.cache.node import cache as node_module
from storage.cache.node.cache import Claim
from storage.cache.node.files import Files
from storage.cache.node.place import make
from storage.digest import digest_bytes
from storage.errors import Cancelled, DigestError
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")

PART = 1 << 20
READER = [sys.executable, str(Path(__file__).parents[1] / "support" / "cache_reader.py")]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "lake")


@pytest.fixture
def objects(zone: Zone) -> list[StoredObject]:
    return [zone.publish(os.urandom(3 * PART + 7), ".arrow") for _ in range(8)]


def digest_of(source: Any) -> str:
    return digest_bytes(source.read_bytes() if isinstance(source, Path) else source)


def read_all(cache: Tiered, objects: list[StoredObject]) -> float:
    """Fetch and check all; returns the seconds that it took."""
    begun = time.monotonic()
    for obj in objects:
        assert digest_of(cache.fetch(obj)) == obj.digest
    return time.monotonic() - begun


def hot(url: str, **options: Any) -> HotCache:
    return HotCache(url, 64 * PART, 16 * PART, timing=Timing(**{"timeout": 0.5, **options}))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def parts(redis: Redis) -> list[bytes]:
    return list(redis.client.keys("shardline:part:*"))


def leases(redis: Redis) -> list[bytes]:
    return list(redis.client.keys("{shardline}:lease:*"))


def counted(redis: Redis) -> int:
    """Bytes that the index counts."""
    return sum(int(size or 0) for size in redis.client.hmget("{shardline}:totals", "pinned", "ring"))


# -- Redis -----------------------------------------------------------------------------------------------------------


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


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 1]))


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


# -- the node's disk ---------------------------------------------------------------------------------------------------


def job_of(zone: Zone, objects: list[StoredObject], **more: Any) -> str:
    tuples = [astuple(obj) for obj in objects]
    return json.dumps({"lake": str(zone.folder), "objects": tuples, "budget": 64 * PART, **more})


def result_of(line: str, objects: list[StoredObject]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line)
    assert result["found"] == {obj.path: obj.digest for obj in objects}
    return result


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_a_full_disk_is_told_once_and_memory_serves(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    """The folder is a real file system of 8 MiB in a mount namespace of its own: two of eight shards fit."""
    (tmp_path / "cache").mkdir()
    job = job_of(zone, objects * 2, node=str(tmp_path / "cache"))
    script = 'mount -t tmpfs -o size=8m tmpfs cache && "$@" && find cache -name "*.tmp"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *READER, job]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()  # so no temporary file was found
    assert result_of(line, objects)["counters"]["lake"]["hits"] == 2 + 2 * 6
    assert done.stderr.count("the disk is full") == 1


def test_a_deleted_folder_is_made_again(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Tiered(zone, NodeCache(folder, 64 * PART)) as cache:
        assert all(isinstance(cache.fetch(obj), Path) for obj in objects[:3])
        mapped = [cache.open(obj)[0] for obj in objects[:3]]
        shutil.rmtree(folder)
        assert [digest_bytes(buffer) for buffer in mapped] == [obj.digest for obj in objects[:3]]
        read_all(cache, objects)
    assert cache.counters()["lake"].hits == 3 + 8
    assert NodeCache(folder, 64 * PART).usage()["bytes"] == sum(obj.bytes for obj in objects)


def test_a_folder_deleted_while_it_is_written_to(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = NodeCache(tmp_path / "cache", 64 * PART)
    cache = Tiered(zone, node)
    claim = node.claim(objects[0].digest, objects[0].bytes)
    assert not isinstance(claim, Path)
    assert claim is not None
    shutil.rmtree(tmp_path / "cache")
    read_all(cache, objects[1:2])  # into a new folder, which doesn't count the claim
    assert digest_of(cache._into(claim, objects[0], behind=False)) == objects[0].digest
    read_all(cache, objects)
    assert len(lines(caplog)) == 1
    assert json.loads((tmp_path / "cache" / "shardline" / "index.json").read_text())["bytes"] == node.usage()["bytes"]
    cache.close()


def test_a_folder_that_cannot_be_made(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with Tiered(zone, NodeCache(tmp_path / "file" / "cache", 64 * PART)) as cache:
        read_all(cache, objects)
    assert len(lines(caplog)) == 1


def test_a_shard_dropped_while_the_folder_is_listed_is_none_of_it(
    zone: Zone, objects: list[StoredObject], tmp_path: Path
) -> None:
    class Listed(Files):
        def listed(self) -> Iterator[tuple[str, str, "os.DirEntry[str]"]]:
            for found in super().listed():
                if found[0] == objects[0].digest:
                    os.unlink(found[2])
                yield found

    with Tiered(zone, NodeCache(tmp_path / "cache", 64 * PART)) as cache:
        read_all(cache, objects[:2])
    node = NodeCache(tmp_path / "cache", 64 * PART)
    node.files = Listed(tmp_path / "cache")
    assert node.digests() == {objects[1].digest: objects[1].bytes}


def test_only_files_of_its_own_are_deleted(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shardline" / "objects"
    make(folder.parent)
    folder.mkdir()
    for name in ("mine.arrow", "notes.tmp", "0" * 64, f"{'0' * 64}.txt"):
        (folder / name).write_text("mine")
    node = NodeCache(tmp_path / "cache", 8 * PART, 4 * PART)
    with Tiered(zone, node) as cache:
        read_all(cache, objects)
    assert node.drop(node.digests()) > 0
    assert sorted(os.listdir(folder)) == sorted(["mine.arrow", "notes.tmp", "0" * 64, f"{'0' * 64}.txt"])


# -- processes ---------------------------------------------------------------------------------------------------------


@contextmanager
def stopped_reader(job: str) -> Iterator["subprocess.Popen[str]"]:
    """A reader that has come to where it stops."""
    with subprocess.Popen([*READER, job], env=environment(), stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "stopped\n"
            yield reader
        finally:
            reader.kill()


@pytest.mark.parametrize("place", ["lease", "half", "write", "writing", "rename"])
def test_a_reader_killed_leaves_nothing(
    zone: Zone, objects: list[StoredObject], redis: Redis, tmp_path: Path, place: str
) -> None:
    """Killed while it fetches through both tiers: the next one gets everything, and the tiers count right.

    What it leaves has the size of the whole from the start, and is never taken for it: it has no shard's name.
    """
    folder = tmp_path / "cache"
    job = job_of(zone, objects[:1], node=str(folder), hot=redis.url, stop_at=place, lease=1)
    with stopped_reader(job):
        assert len(leases(redis)) == 1
        arrived = {"lease": 0, "half": 1}.get(place, 4)
        wait_for(lambda: len(parts(redis)) == arrived, "what has arrived to be pushed")
    [left] = (folder / "shardline" / "objects").iterdir()
    size = objects[0].bytes
    written = {"writing": size // 2, "rename": size}.get(place, 0)
    assert left.suffix == ".tmp"
    assert left.read_bytes() == bytes(zone.read(objects[0].path)[:written]).ljust(size, b"\0")
    with Tiered(zone, NodeCache(folder, 64 * PART), hot(redis.url, lease=1, timeout=5)) as cache:
        assert read_all(cache, objects) < 20
    assert cache.counters()["lake"].hits == (7 if arrived == 4 else 8)  # all its parts had been pushed
    assert cache.counters()["node"].hits == 0
    kept = {file.name: digest_of(file) for file in (folder / "shardline" / "objects").iterdir()}
    assert kept == {f"{obj.digest}.arrow": obj.digest for obj in objects}
    wait_for(lambda: not leases(redis), "the lease to expire")
    total = sum(obj.bytes for obj in objects)
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == total
    assert counted(redis) == total
    assert len(parts(redis)) == 4 * len(objects)


@pytest.mark.parametrize("place", ["half", "writing", "rename"])
def test_stale_temporary_files_are_swept(zone: Zone, objects: list[StoredObject], tmp_path: Path, place: str) -> None:
    folder = tmp_path / "cache"
    with stopped_reader(job_of(zone, objects[:1], node=str(folder), stop_at=place)):
        pass
    assert len(list(folder.rglob("*.tmp"))) == 1
    index = json.loads((folder / "shardline" / "index.json").read_text())
    (folder / "shardline" / "index.json").write_text(json.dumps(index | {"counted": 0}))
    with Tiered(zone, NodeCache(folder, 64 * PART)) as cache:
        read_all(cache, objects[1:2])
    assert not list(folder.rglob("*.tmp"))
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == objects[1].bytes


def test_a_reader_that_hangs_is_waited_for_no_longer_than_the_time_out(
    zone: Zone, objects: list[StoredObject], redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is alive and renews its lease, but its read from the lake doesn't come to an end."""
    folder = tmp_path / "cache"
    with stopped_reader(job_of(zone, objects[:1], node=str(folder), hot=redis.url, stop_at="lease", lease=1)):
        node, remote = NodeCache(folder, 64 * PART, timeout=0.5), hot(redis.url, wait=1.5, lease=1)
        with Tiered(zone, node, remote) as cache:
            assert read_all(cache, objects[:1]) < 8
    assert len(lines(caplog)) == 2  # one for each tier


HOLDER = """
import signal, sys
from pathlib import Path
from storage.cache import NodeCache
with NodeCache(Path(sys.argv[1]), 1 << 26)._index():
    print("locked", flush=True)
    signal.pause()
"""


def test_a_neighbour_that_is_stopped_with_the_index_costs_one_time_out(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    with Tiered(zone, NodeCache(folder, 64 * PART)) as before:
        read_all(before, objects[:1])
    cache = Tiered(zone, NodeCache(folder, 64 * PART, timeout=2))
    assert cache.node is not None
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as neighbour:
        try:
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline() == "locked\n"
            neighbour.send_signal(signal.SIGSTOP)
            assert 1.9 < read_all(cache, objects) < 3.5
            assert cache.counters()["node"].hits == 1  # what is there needs no index
            [line] = lines(caplog)
            assert (
                f"{folder}/shardline/index.json has been locked by another process for 2 s (cache.hot.wait_s)" in line
            )
            breaker = cache.node._lock._breaker
            until = breaker.until

            def tries_again() -> bool:
                assert read_all(cache, objects[1:2]) < 1.5
                return breaker.until > until

            wait_for(tries_again, "another attempt", seconds=10)
        finally:
            neighbour.kill()

    def comes_back() -> bool:
        read_all(cache, objects)
        return len(cache.node.digests()) == len(objects)  # type: ignore[union-attr]

    wait_for(comes_back, "new shards to be kept again", seconds=20)
    assert len(lines(caplog)) == 2
    assert "is free again" in lines(caplog)[1]
    assert not list(folder.rglob("*.tmp"))
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == sum(obj.bytes for obj in objects)
    cache.close()


def test_the_lock_of_a_file_that_is_gone_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One opens the temporary file; before it has the lock, its holder gives up and another begins a new file."""
    first, second, third = (NodeCache(tmp_path / "cache", 64 * PART, timeout=0.3) for _ in range(3))
    digest, claims = "0" * 64, []
    begun = first.claim(digest, PART)
    assert isinstance(begun, Claim)
    try_lock = node_module.try_lock

    def late(descriptor: int) -> bool:
        monkeypatch.setattr(node_module, "try_lock", try_lock)
        begun.abandon()
        claims.append(third.claim(digest, PART))
        return try_lock(descriptor)

    monkeypatch.setattr(node_module, "try_lock", late)
    assert second.claim(digest, PART) is None
    assert isinstance(claims[0], Claim)
    file = claims[0].commit(memoryview(bytes(PART)))
    assert isinstance(file, Path)
    assert file.stat().st_size == PART


def test_a_fetch_that_was_cancelled_elsewhere_is_done_by_who_waited_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two streams of a process share tiers, and the one that fetches a shard is closed."""
    begun, closed, tries = threading.Event(), threading.Event(), list[bool]()

    def fetch(tiers: Tiered, obj: StoredObject, behind: bool) -> bytes:
        tries.append(behind)
        if len(tries) > 1:
            return b"here"
        begun.set()
        closed.wait()
        raise Cancelled("nobody waits for it any more")

    monkeypatch.setattr(Tiered, "_fetch", fetch)
    obj = StoredObject("objects/a.arrow", "a", 4, 4)
    with Tiered(Zone(tmp_path)) as tiers, ThreadPoolExecutor(2) as pool:
        first = pool.submit(tiers.fetch, obj)
        begun.wait()
        second = pool.submit(tiers.fetch, obj)
        wait_for(second.running, "the other to wait")
        closed.set()
        assert second.result() == b"here"
        with pytest.raises(Cancelled):
            first.result()
