"""A stream over S3, a node cache and Redis, to which a fault happens while it is read.

In each case its batches are those of an undisturbed one, in bounded time, and nothing is left behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support import shared_memory
from support.faulty_proxy import FaultyProxy, s3_error
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from support.servers import Redis, S3Machine, redis_server, wait_for

from pipelines.streaming import Stream, source
from pipelines.streaming.fetch import Fetcher, Opened
from storage.atomic import write_atomically
from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.cache.hot.push import part_keys
from storage.cache.tiered import objects_of
from storage.digest import digest_bytes, digest_file
from storage.errors import DigestError, LakeError
from storage.lake import Zone
from storage.objects import deadline

pytestmark = pytest.mark.xdist_group("s3")

ROWS, SHARDS, BATCH = 160, 16, 40  # rows a shard and a batch: four batches a shard
SETTINGS: dict[str, Any] = {"split": "train", "batch_size": BATCH, "seed": 5, "window": ROWS, "lanes": 1}
BEFORE, DURING = 8, 24  # batches until the fault, and while it lasts: of the 64 of the first epoch
LAKE_TIMEOUT, REDIS_TIMEOUT, LEASE = 40.0, 2.0, 3.0  # seconds
SLACK = 15.0  # seconds: the machine is busy

Batches = list[tuple[list[int], str]]  # of each one its labels, and the digest of its data


def open_stream(tiers: Tiered) -> Stream:
    """One without an end that is never far ahead, and holds few shards: most are still to come, in each epoch again."""
    manifest = tiers.zone.manifest()
    size = max(manifest.table["bytes"].to_pylist())
    return flat_stream(tiers.zone, manifest, tiers=tiers, ahead=size, memory=4 * size, **SETTINGS)


def take(stream: Stream, count: int | None) -> Batches:
    """The next `count` batches, or all that there are."""
    return [(batch["label"].tolist(), digest_bytes(batch["x"].tobytes())) for batch in islice(stream, count)]


def undisturbed(zone: Zone) -> Batches:
    """Two epochs, straight from the lake."""
    with flat_stream(zone, zone.manifest(), prefetch=0, epochs=2, **SETTINGS) as stream:
        batches = take(stream, None)
    rows = sum(zone.manifest().table["rows"].to_pylist())
    assert sorted(label for labels, _ in batches for label in labels) == sorted([*range(rows)] * 2)
    return batches


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither threads nor shared memory. Batches are made one by one, so that shards are opened as late as can be."""
    monkeypatch.setattr(source, "_HANDED_OVER", 1)
    monkeypatch.setattr(deadline, "_IDLE", 0.2)  # else the thread that limits the lake's reads stays for five seconds
    threads = set(threading.enumerate())
    with shared_memory.none_is_left():
        yield
        wait_for(lambda: set(threading.enumerate()) <= threads, "the end of all threads", seconds=LEASE + SLACK)


# -- the servers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Machine]:
    server = S3Machine(tmp_path_factory.mktemp("s3"))
    with server.stack:
        yield server


@contextmanager
def reached(server: S3Machine) -> Iterator[None]:
    """By this process, without a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.s3.env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def lake(server: S3Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Zone, Batches]:
    """Shards in the S3 server of two MiB-parts each, and what an undisturbed stream makes of them."""
    zone = Zone(tmp_path_factory.mktemp("zone"), "s3://lake/stream-faults", timeout=LAKE_TIMEOUT)
    with reached(server):
        publish(zone, SHARDS, rows=ROWS, width=2048)
        return zone, undisturbed(zone)


@pytest.fixture(scope="module")
def packed(server: S3Machine, tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """The same shards compressed at rest, so the same batches."""
    zone = Zone(tmp_path_factory.mktemp("packed"), "s3://lake/stream-faults-packed", timeout=LAKE_TIMEOUT)
    with reached(server):
        publish(zone, SHARDS, rows=ROWS, width=2048, how="zstd")
    return zone


@dataclass
class Site:
    """All that a stream depends on. `redis` is the one that runs, or ran last; `proxy` is before S3."""

    server: S3Machine
    proxy: FaultyProxy
    redis: Redis
    redis_proxy: FaultyProxy
    tiers: Tiered
    credentials: Path
    folder: Path
    log: pytest.LogCaptureFixture
    stack: ExitStack

    @property
    def zone(self) -> Zone:
        return self.tiers.zone

    @property
    def node(self) -> NodeCache:
        assert self.tiers.node is not None
        return self.tiers.node

    @property
    def hot(self) -> HotCache:
        assert self.tiers.hot is not None
        return self.tiers.hot

    def read(self, zone: Zone) -> None:
        """Let the same caches be those of `zone`, and of a process that has checked nothing yet."""
        self.tiers = Tiered(zone, self.node, self.hot)

    def leases(self) -> list[bytes]:
        return list(self.redis.client.keys("{shardline}:lease:*"))

    def told(self, text: str) -> bool:
        return any(text in line for line in self.log.messages)

    def use_key(self, name: str) -> None:
        """Let all who look for credentials find these."""
        text = f"[default]\naws_access_key_id = {name}key\naws_secret_access_key = {name}secret\n"
        write_atomically(self.credentials, text.encode())

    def redis_may_be_tried(self) -> None:
        """Wait until the circuit breaker lets somebody try."""
        wait_for(lambda: not self.hot.link.open, "the end of the pause")


@pytest.fixture
def site(
    server: S3Machine,
    lake: tuple[Zone, Batches],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Site]:
    for name in ("AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, server.s3.env[name])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    zone, half = lake[0], sum(lake[0].manifest().table["bytes"].to_pylist()) // 2
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultyProxy(*server.place))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        redis = stack.enter_context(redis_server(tmp_path / "redis"))
        redis_proxy = stack.enter_context(FaultyProxy("127.0.0.1", redis.port))
        hot = HotCache(f"redis://{redis_proxy.address}", 4 * half, timing=Timing(timeout=REDIS_TIMEOUT, lease=LEASE))
        tiers = Tiered(zone, NodeCache(tmp_path / "node", half), hot)
        site = Site(server, proxy, redis, redis_proxy, tiers, tmp_path / "credentials", tmp_path, caplog, stack)
        site.use_key("test")
        yield site


def assert_nothing_is_left(site: Site, objects: dict[str, int]) -> None:
    """No lease, no temporary file, nothing new in the lake; and what is in the caches is whole."""
    if site.redis.process.poll() is None:
        assert not site.leases()
        assert site.redis.client.keys("shardline:part:*")  # so it was in use, up to now or again
    assert not list(site.folder.rglob("*.tmp"))
    assert not list(site.zone.folder.rglob("*.tmp"))
    assert site.zone.reader.paths() == objects
    assert_whole(site.node)


def assert_whole(node: NodeCache) -> None:
    """What the node cache holds is what it says, and what it counts."""
    digests = node.digests()
    assert digests
    assert {digest: digest_file(node.path(digest)) for digest in digests} == {digest: digest for digest in digests}
    assert json.loads((node.files.place / "index.json").read_text())["bytes"] == sum(digests.values())


# -- faults ------------------------------------------------------------------------------------------------------------


@contextmanager
def redis_killed(site: Site) -> Iterator[None]:
    site.redis.process.kill()
    site.redis.process.wait()
    yield
    assert site.told("The lake is read instead")


@contextmanager
def redis_killed_and_started(site: Site) -> Iterator[None]:
    with redis_killed(site):
        yield
    site.redis = site.stack.enter_context(redis_server(site.folder / "redis", port=site.redis.port))
    site.redis_may_be_tried()


@contextmanager
def redis_paused(site: Site) -> Iterator[None]:
    site.redis.process.send_signal(signal.SIGSTOP)
    try:
        yield
        assert site.told("The lake is read instead")
    finally:
        site.redis.process.send_signal(signal.SIGCONT)
    wait_for(lambda: not site.leases(), "the end of the leases asked for meanwhile", seconds=LEASE + SLACK)
    site.redis_may_be_tried()


@contextmanager
def redis_slow(site: Site) -> Iterator[None]:
    """Each of its answers takes longer than is waited for."""
    site.redis_proxy.slow(1)
    yield
    assert site.told("The lake is read instead")
    site.redis_proxy.heal()
    wait_for(lambda: not site.leases(), "the end of the leases asked for meanwhile", seconds=LEASE + SLACK)
    site.redis_may_be_tried()


@contextmanager
def redis_out_of_memory(site: Site) -> Iterator[None]:
    """What it refused has no place in it; what it has is used."""
    site.redis.client.config_set("maxmemory", "1mb")
    yield
    assert site.redis.client.exists("{shardline}:full")
    assert site.hot.settle(SLACK)
    assert len(site.redis.client.keys("shardline:part:*")) == 2 * len(site.hot.digests())
    assert not site.told("The lake is read instead")
    site.redis.client.config_set("maxmemory", "256mb")


@contextmanager
def s3_killed_and_started(site: Site) -> Iterator[None]:
    """It starts once a connection to the dead one was tried."""
    site.server.kill()
    tried = site.proxy.connections

    def start() -> None:
        wait_for(lambda: site.proxy.connections > tried, "a connection to the server that is gone")
        site.server.start()
        site.proxy.target = site.server.place

    starter = threading.Thread(target=start)
    starter.start()
    yield
    starter.join()


@contextmanager
def s3_answers_503(site: Site) -> Iterator[None]:
    left = [s3_error(503, "SlowDown")] * 5
    site.proxy.answer(lambda _: left.pop() if left else None)
    yield
    assert not left


@contextmanager
def credentials_expire(site: Site) -> Iterator[None]:
    site.use_key("next")
    site.proxy.answer(lambda head: s3_error(400, "ExpiredToken") if b"Credential=testkey/" in head else None)
    yield
    assert any(b"Credential=nextkey/" in head for head in site.proxy.requests)


@contextmanager
def node_folder_deleted(site: Site) -> Iterator[None]:
    gone = site.node.folder.rename(site.folder / "gone")  # all at once: who writes there makes a new one
    shutil.rmtree(gone)
    yield


@dataclass(frozen=True)
class Fault:
    """`happens` while batches are read, and costs at most `seconds`."""

    happens: Callable[[Site], AbstractContextManager[None]]
    seconds: float
    redis_comes_back: bool = False


FAULTS = {
    "Redis killed": Fault(redis_killed, REDIS_TIMEOUT),
    "Redis killed and started": Fault(redis_killed_and_started, REDIS_TIMEOUT, redis_comes_back=True),
    "Redis paused": Fault(redis_paused, 3 * REDIS_TIMEOUT + LEASE, redis_comes_back=True),
    "Redis slow": Fault(redis_slow, 3 * REDIS_TIMEOUT + LEASE, redis_comes_back=True),
    "Redis out of memory": Fault(redis_out_of_memory, 0),
    "S3 killed and started": Fault(s3_killed_and_started, LAKE_TIMEOUT),
    "S3 answers 503": Fault(s3_answers_503, LAKE_TIMEOUT / 8),
    "credentials expire": Fault(credentials_expire, LAKE_TIMEOUT / 8),
    "node folder deleted": Fault(node_folder_deleted, 0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_changes_no_batch(site: Site, lake: tuple[Zone, Batches], fault: Fault) -> None:
    objects, begun = site.zone.reader.paths(), time.monotonic()
    with site.tiers, open_stream(site.tiers) as stream:
        seen = take(stream, BEFORE)
        assert site.tiers.counters()["lake"].hits <= SHARDS // 2  # the others are still to come
        with fault.happens(site):
            seen += take(stream, DURING)
        seen += take(stream, len(lake[1]) - len(seen))
    assert time.monotonic() - begun < fault.seconds + SLACK
    assert seen == lake[1]
    assert any(line.endswith("answers again") for line in site.log.messages) == fault.redis_comes_back
    assert_nothing_is_left(site, objects)


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(whole: bytes, how: str) -> bytes:
    if how == "flipped":
        return whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:]
    return whole[:-300] if how == "cut off" else whole[: len(whole) // 2].ljust(len(whole), b"\0")


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


# -- another version ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ["kept", "deleted"])
def test_a_version_that_is_replaced_meanwhile(site: Site, old: str) -> None:
    """The lake keeps what it holds, so the old version is read to its end. Somebody may delete that by hand: then what
    has come is delivered, and the batch that needs more names it."""
    zone = Zone(site.folder / "zone", "s3://lake/stream-faults-replaced", timeout=LAKE_TIMEOUT)
    paths = publish(zone, SHARDS, rows=ROWS, width=2048).table["path"].to_pylist()
    expected = undisturbed(zone)
    site.read(zone)
    with site.tiers, open_stream(site.tiers) as stream:
        seen = take(stream, BEFORE)
        publish(zone, 1, rows=ROWS, width=2048, first=ROWS * SHARDS)
        begun = time.monotonic()
        if old == "kept":
            seen += take(stream, len(expected) - BEFORE)
            assert seen == expected
        else:
            for path in paths:
                zone.reader.delete(path)
            with pytest.raises(LakeError, match=f"{zone.url}/objects/.*: an object that the manifest names") as caught:
                seen.extend(batch for _ in expected for batch in take(stream, 1))
            assert BEFORE <= len(seen) < len(expected) // 2
            assert seen == expected[: len(seen)]
            needed = {paths[label // ROWS] for label in expected[len(seen)][0]}
            assert any(path in str(caught.value) for path in needed)
        assert time.monotonic() - begun < SLACK
    with flat_stream(zone, zone.manifest(), epochs=1, **SETTINGS) as stream:
        assert sorted(label for labels, _ in take(stream, None) for label in labels) == [
            *range(ROWS * SHARDS, ROWS * (SHARDS + 1))
        ]
    assert_nothing_is_left(site, zone.reader.paths())


# -- a lake that stays away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [FaultyProxy.down, FaultyProxy.stall])
def test_a_lake_that_stays_away_is_told_within_the_time_out(site: Site, fault: Callable[[FaultyProxy], None]) -> None:
    """No longer, though what was fetched ahead failed too."""
    timeout = 8.0
    zone = replace(site.zone, timeout=timeout)
    with Tiered(zone) as tiers, open_stream(tiers) as stream:
        take(stream, BEFORE)
        fault(site.proxy)
        came = [time.monotonic()]
        with pytest.raises(LakeError, match=r"objects/\w+.arrow: no progress in .*compute.lake_timeout=8"):
            came.extend(time.monotonic() for _ in stream)
        assert time.monotonic() - came[-1] < 1.5 * timeout


def test_a_stream_whose_lake_is_silent_is_closed_in_moments(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    opened = Fetcher.open

    def open_shard(fetcher: Fetcher, index: int) -> Opened:
        waits.append(index)
        shard = opened(fetcher, index)
        waits.remove(index)
        return shard

    monkeypatch.setattr(Fetcher, "open", open_shard)
    site.proxy.slow(1 << 20)  # the next shard isn't there when the first batch is
    with (
        Tiered(site.zone) as tiers,
        flat_stream(site.zone, site.zone.manifest(), tiers=tiers, prefetch=64, **SETTINGS) as s,
    ):
        next(s)
        site.proxy.stall()
        wait_for(lambda: bool(waits), "a shard that is waited for")
        begun = time.monotonic()
        s.close()
        assert time.monotonic() - begun < LAKE_TIMEOUT / 4


@pytest.mark.long
def test_an_interrupt_ends_a_process_that_waits_for_its_lake(site: Site, environment: dict[str, str]) -> None:
    job = {"folder": str(site.zone.folder), "url": site.zone.url, "settings": SETTINGS}
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    env = {**environment, **site.server.s3.env, "AWS_ENDPOINT_URL": f"http://{site.proxy.address}", "PYTHONPATH": path}
    site.proxy.slow(1 << 20)
    command = [sys.executable, str(REPOSITORY / "tests" / "support" / "stream_reader.py"), json.dumps(job)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(lambda: site.proxy.passed > 2 << 20, "the first shard")
        site.proxy.down()
        assert "no progress for" in process.stderr.readline()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT, told
        assert time.monotonic() - begun < SLACK


# -- the node's disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MiB, in a mount namespace of another process: seen through that one's /proc."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = 'mount -t tmpfs -o size=12m tmpfs "$1" && echo mounted && cat'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
        yield Path(f"/proc/{holder.pid}/root{folder}")


def test_a_disk_that_is_full_for_the_thread_that_writes_behind(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of eight shards fit, which are so large that they are written past the page cache."""
    zone = Zone(tmp_path / "lake")
    publish(zone, 8, rows=ROWS, width=8192)
    expected, begun = undisturbed(zone), time.monotonic()
    node = NodeCache(small_disk / "node", 1 << 30)
    with Tiered(zone, node) as tiers, open_stream(tiers) as stream:
        assert take(stream, len(expected)) == expected
    assert time.monotonic() - begun < SLACK
    (record,) = caplog.records
    assert "the disk is full" in record.getMessage()
    assert record.threadName is not None
    assert record.threadName.startswith("shardline-node-cache")
    assert tiers.counters()["lake"].hits > 8  # what found no place was read again
    assert sorted(os.listdir(small_disk / "node" / "shardline" / "objects")) == sorted(
        f"{digest}.arrow" for digest in node.digests()
    )
    assert_whole(node)
