"""For tests of a stream over S3, a node cache and Redis: all that it depends on, and what it may leave behind."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.faulty_proxy import FaultyProxy
from support.flat_streams import flat_stream
from support.servers import Redis, S3Machine, wait_for

from pipelines.streaming import Stream
from storage.atomic import write_atomically
from storage.cache import HotCache, NodeCache, Tiered
from storage.digest import digest_bytes, digest_file
from storage.lake import Zone

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


@contextmanager
def reached(server: S3Machine) -> Iterator[None]:
    """By this process, without a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.s3.env.items():
            patch.setenv(name, value)
        yield


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


def damage(whole: bytes, how: str) -> bytes:
    if how == "flipped":
        return whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:]
    return whole[:-300] if how == "cut off" else whole[: len(whole) // 2].ljust(len(whole), b"\0")
