"""A Redis server, and a lake with eight shards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty_caches import PART
from support.servers import Redis, redis_server

from storage.lake import StoredObject, Zone


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
