"""A stream's servers and caches, with shards in the lake; no test leaves threads or shared memory."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import shared_memory
from support.faulty_proxy import FaultyProxy
from support.numbered_samples import publish
from support.servers import S3Machine, redis_server, wait_for
from support.stream_site import (
    LAKE_TIMEOUT,
    LEASE,
    REDIS_TIMEOUT,
    ROWS,
    SHARDS,
    SLACK,
    Batches,
    Site,
    reached,
    undisturbed,
)

from pipelines.streaming import source
from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.lake import Zone
from storage.objects import deadline


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither threads nor shared memory. Batches are made one by one, so that shards are opened as late as can be."""
    monkeypatch.setattr(source, "_HANDED_OVER", 1)
    monkeypatch.setattr(deadline, "_IDLE", 0.2)  # else the thread that limits the lake's reads stays for five seconds
    threads = set(threading.enumerate())
    with shared_memory.none_is_left():
        yield
        wait_for(lambda: set(threading.enumerate()) <= threads, "the end of all threads", seconds=LEASE + SLACK)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Machine]:
    server = S3Machine(tmp_path_factory.mktemp("s3"))
    with server.stack:
        yield server


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
