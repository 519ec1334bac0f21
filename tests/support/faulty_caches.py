"""For tests of caches with faults: reading through tiers, and what Redis and the node then hold."""

import json
import logging
import os
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support.servers import Redis

from storage.cache import HotCache, Tiered, Timing
from storage.digest import digest_bytes
from storage.lake import StoredObject, Zone

PART = 1 << 20
READER = [sys.executable, str(REPOSITORY / "tests" / "support" / "cache_reader.py")]


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


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 1]))


def job_of(zone: Zone, objects: list[StoredObject], **more: Any) -> str:
    tuples = [astuple(obj) for obj in objects]
    return json.dumps({"lake": str(zone.folder), "objects": tuples, "budget": 64 * PART, **more})


def result_of(line: str, objects: list[StoredObject]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line)
    assert result["found"] == {obj.path: obj.digest for obj in objects}
    return result


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}
