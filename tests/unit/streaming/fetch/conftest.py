"""Shards in a lake in memory; no test leaves a thread."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.watched_fetch import publish

from storage.lake import Zone
from storage.manifest import Manifest


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "shards", f"memory://{tmp_path}")


@pytest.fixture
def manifest(zone: Zone) -> Manifest:
    return publish(zone)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
