"""A stream over S3, a node cache and Redis, to which a fault happens while it is read.

In each case its batches are those of an undisturbed one, in bounded time, and nothing is left behind.
"""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest
from support.faulty_proxy import s3_error
from support.servers import redis_server, wait_for
from support.stream_site import (
    BEFORE,
    DURING,
    LAKE_TIMEOUT,
    LEASE,
    REDIS_TIMEOUT,
    SHARDS,
    SLACK,
    Batches,
    Site,
    assert_nothing_is_left,
    open_stream,
    take,
)

from storage.lake import Zone

pytestmark = pytest.mark.xdist_group("s3")


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
