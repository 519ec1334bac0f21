"""Nodes with caches of their own that share one Redis and one S3 read what one reader of the lake would."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from servers import S3, redis_server

from pipelines.streaming import Stream
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples

pytestmark = pytest.mark.xdist_group("s3")
ROWS, SHARDS, WIDTH = 250, 16, 4096  # 4 MiB a shard
MIB = 1 << 20
SETTINGS = {"split": "train", "batch_size": 50, "seed": 9, "window": 600, "epochs": 1}


@pytest.fixture(scope="module")
def zone(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zone]:
    patch = pytest.MonkeyPatch()
    for name, value in s3.env.items():
        patch.setenv(name, value)
    zone, random = Zone(tmp_path_factory.mktemp("zone"), "s3://lake/stream-nodes"), np.random.default_rng(2)
    records = []
    for first in range(0, ROWS * SHARDS, ROWS):
        columns = {"x": random.random((ROWS, WIDTH), dtype=np.float32), "label": np.arange(first, first + ROWS)}
        stored = zone.publish(encode_samples(columns, [str(first + row) for row in range(ROWS)]), ".arrow")
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
        records.append({**about, "rows": ROWS, "key": "", "split": "train", "tokens": 0, "stats": None})
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [WIDTH]}}, "target": {"name": "label", "dtype": "int64"}}
    zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))
    yield zone
    patch.undo()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def run_all(environment: dict[str, str], s3: S3, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    env = {**environment, **s3.env, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    script = str(REPOSITORY / "tests" / "stream_reader.py")
    started = [
        subprocess.Popen([sys.executable, script, json.dumps(job)], env=env, stdout=subprocess.PIPE, text=True)
        for job in jobs
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(jobs)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def job(zone: Zone, **more: Any) -> dict[str, Any]:
    settings = {**SETTINGS, **more.pop("settings", {})}
    return {"folder": str(zone.folder), "url": zone.url, "budget": 128 * MIB, "settings": settings, **more}


@pytest.mark.long
def test_two_nodes_and_two_processes_read_what_one_reader_does(
    zone: Zone, s3: S3, redis_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with Stream(zone, zone.manifest(), **SETTINGS) as stream:  # type: ignore[arg-type]
        expected = [batch["label"].tolist() for batch in stream]
    assert sorted(label for batch in expected for label in batch) == list(range(ROWS * SHARDS))
    jobs = [
        job(zone, node=str(tmp_path / f"node{rank // 2}"), hot=redis_url, settings={"rank": rank, "world": 4})
        for rank in range(4)
    ]
    found = run_all(environment, s3, jobs)
    parts = zip(*(reader["batches"] for reader in found), strict=True)
    joined = [[label for share in shares for label in share] for shares in parts]
    assert joined == expected
    total = sum(zone.manifest().table["bytes"].to_pylist())
    from_lake = sum(reader["counters"]["lake"]["bytes"] for reader in found)
    assert total <= from_lake <= 1.1 * total  # each shard once for all four


@pytest.mark.long
def test_a_dataset_larger_than_the_memory_streams_within_it(zone: Zone, s3: S3, environment: dict[str, str]) -> None:
    """64 MiB of shards, of which 16 are held and 4 fetched ahead: no tier, so all of it passes through memory."""
    small = {"memory": 16 * MIB, "ahead": 4 * MIB, "window": 250, "lanes": 1}
    large = {"memory": 1 << 30, "ahead": 1 << 30}
    [bounded, free] = run_all(environment, s3, [job(zone, settings=small), job(zone, settings=large)])
    assert len(bounded["batches"]) == len(free["batches"]) == ROWS * SHARDS / 50
    assert free["grown"] - bounded["grown"] > 24 * MIB
