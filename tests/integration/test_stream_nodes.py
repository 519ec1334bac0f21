"""Nodes with caches of their own that share one Redis and one S3 read what one reader of the lake would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from support.servers import S3, redis_server
from support.stream_reader import read_all

from pipelines.training.data.stream_loader import StreamLoader
from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.lake import Zone

pytestmark = pytest.mark.xdist_group("s3")
ROWS, SHARDS, WIDTH = 250, 16, 4096  # 4 MiB a shard
MIB = 1 << 20
SETTINGS = {"split": "train", "batch_size": 50, "seed": 9, "window": 600, "epochs": 1}


@pytest.fixture(scope="module")
def zone(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zone]:
    patch = pytest.MonkeyPatch()
    for name, value in s3.env.items():
        patch.setenv(name, value)
    zone = Zone(tmp_path_factory.mktemp("zone"), "s3://lake/stream-nodes")
    publish(zone, SHARDS, rows=ROWS, width=WIDTH)
    yield zone
    patch.undo()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def run_all(environment: dict[str, str], s3: S3, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return read_all(jobs, {**environment, **s3.env, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"})


def job(zone: Zone, **more: Any) -> dict[str, Any]:
    settings = {**SETTINGS, **more.pop("settings", {})}
    return {"folder": str(zone.folder), "url": zone.url, "budget": 128 * MIB, "settings": settings, **more}


@pytest.mark.long
def test_two_nodes_and_two_processes_read_what_one_reader_does(
    zone: Zone, s3: S3, redis_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with flat_stream(zone, zone.manifest(), **SETTINGS) as stream:  # type: ignore[arg-type]
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


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_workers_of_a_stream_loader_deliver_each_batch_once(
    zone: Zone, redis_url: str, tmp_path: Path, method: str, cached: bool
) -> None:
    """In order, though the stream that they are started with has read from S3 and Redis before."""
    few = Zone(tmp_path / "zone", zone.url)
    manifest = publish(few, 4, rows=ROWS, width=WIDTH // 16)
    node, hot = (
        NodeCache(tmp_path / "node", 64 * MIB),
        HotCache(redis_url, 64 * MIB, prefix=method, timing=Timing(timeout=10)),
    )
    tiers = Tiered(few, node, hot) if cached else Tiered(few)
    with tiers, flat_stream(few, manifest, tiers=tiers, ahead=MIB, **SETTINGS) as stream:  # type: ignore[arg-type]
        loaded = [next(stream)["label"].tolist()]
        workers: dict[str, Any] = {"num_workers": 2, "timeout": 30, "multiprocessing_context": method}
        loaded += [batch["label"].tolist() for batch in StreamLoader(stream, **workers)]
        assert stream.is_at_end()
    with flat_stream(few, manifest, **SETTINGS) as stream:  # type: ignore[arg-type]
        assert loaded == [batch["label"].tolist() for batch in stream]
