"""Shards of samples and of tokens; no test leaves a thread."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.small_shards import SIZES, record

from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "shards")


@pytest.fixture
def samples(zone: Zone) -> Manifest:
    """Samples whose label is their number over all shards, and x twice that."""
    records, first = [], 0
    for rows in SIZES:
        labels = np.arange(first, first + rows)
        columns = {"x": np.repeat(2 * labels, 2).reshape(-1, 2).astype(np.float32), "label": labels}
        records.append(record(zone, encode_samples(columns, [f"id{label}" for label in labels]), rows))
        first += rows
    records.append(record(zone, encode_samples({"x": np.zeros((0, 2)), "label": np.zeros(0)}, []), 0, split="val"))
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


@pytest.fixture
def tokens(zone: Zone) -> Manifest:
    records = []
    for index, count in enumerate([50, 8, 0, 9, 33]):
        values = np.arange(count, dtype=np.uint16) + 1000 * index
        encoded = encode_tokens(values, np.array([0, count]), [f"doc{index}"])
        records.append(record(zone, encoded, 1, tokens=count))
    return zone.commit(Manifest.build("shards", records, kind="tokens", spec={"dtype": "uint16", "vocab_size": 9000}))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
