"""Processes that share an S3 lake, a Redis and a node's cache: killed, all at once, and more than there are shards."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support import cache_reader, shared_memory, stream_reader
from support.faulty_proxy import FaultyProxy
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from support.servers import S3, Redis, redis_server, wait_for

from storage.cache import NodeCache
from storage.cache.hot.push import part_keys
from storage.cache.tiered import objects_of
from storage.digest import digest_file
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("s3")

ROWS, SHARDS, WIDTH = 160, 8, 2048  # two parts a shard
BUDGET = 64 << 20  # bytes
SETTINGS: dict[str, Any] = {"split": "train", "batch_size": 40, "seed": 5, "window": ROWS, "lanes": 1, "epochs": 1}


@pytest.fixture(autouse=True)
def no_shared_memory_is_left() -> Iterator[None]:
    with shared_memory.none_is_left():
        yield


@pytest.fixture
def env(s3: S3, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of readers; this process reaches the lake, too."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return {**environment, **s3.env, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}


@pytest.fixture
def zone(env: dict[str, str], tmp_path: Path) -> Zone:
    zone = Zone(tmp_path / "zone", "s3://lake/process-faults")
    publish(zone, SHARDS, rows=ROWS, width=WIDTH)
    return zone


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def leases(redis: Redis) -> list[bytes]:
    return list(redis.client.keys("{shardline}:lease:*"))


def job(zone: Zone, node: Path, redis: Redis, **more: Any) -> dict[str, Any]:
    """Of a process that reads the stream."""
    about = {"folder": str(zone.folder), "url": zone.url, "budget": BUDGET, "node": str(node), "hot": redis.url}
    return {**about, "settings": {**SETTINGS, **more.pop("settings", {})}, **more}


def undisturbed(zone: Zone) -> list[list[int]]:
    """The labels of each batch, straight from the lake."""
    with flat_stream(zone, zone.manifest(), prefetch=0, **SETTINGS) as stream:
        return [batch["label"].tolist() for batch in stream]


def assert_nothing_is_left(redis: Redis, *nodes: Path) -> None:
    """No lease, no temporary file; and a node's files are what they say, and what its index counts."""
    assert not leases(redis)
    for node in nodes:
        files = {path.name: path for path in (node / "shardline" / "objects").iterdir()}
        assert list(files) == [f"{digest_file(path)}.arrow" for path in files.values()]
        assert json.loads((node / "shardline" / "index.json").read_text())["bytes"] == sum(
            p.stat().st_size for p in files.values()
        )


def assert_all_is_held(objects: list[StoredObject], redis: Redis, *nodes: Path) -> None:
    """By every tier, and nothing else."""
    assert_nothing_is_left(redis, *nodes)
    sizes = {obj.digest: obj.plain_bytes for obj in objects}
    assert [NodeCache(node, BUDGET).digests() for node in nodes] == [sizes] * len(nodes)
    keys = {key for digest, size in sizes.items() for key in part_keys("shardline", digest, size)}
    assert {key.decode() for key in redis.client.keys("shardline:part:*")} == keys
    totals = redis.client.hmget("{shardline}:totals", "pinned", "ring")
    assert sum(int(total or 0) for total in totals) == sum(sizes.values())


def end_all(leader: int) -> None:
    """Kill a process and its children, where any are left."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def test_sixteen_processes_at_once_on_empty_caches_read_the_lake_once(
    zone: Zone, redis: Redis, env: dict[str, str], tmp_path: Path
) -> None:
    """Eight on each of two nodes, which share Redis: on a node one of them fetches a shard, and seven take its file."""
    objects, nodes = objects_of(zone.manifest().table), [tmp_path / "first", tmp_path / "second"]
    about = {"lake": str(zone.folder), "url": zone.url, "objects": [astuple(obj) for obj in objects], "hot": redis.url}
    waits, gate = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, waits)
        started = []
        for node in nodes:
            job = json.dumps({**about, "budget": BUDGET, "node": str(node), "processes": 8, "gate": True})
            command, pipe = [sys.executable, cache_reader.__file__, job], subprocess.PIPE
            process = subprocess.Popen(command, env=env, stdin=waits, stdout=pipe, text=True, start_new_session=True)
            started.append(stack.enter_context(process))
            stack.callback(end_all, process.pid)
        with os.fdopen(gate, "w"):
            for process in started:
                assert process.stdout is not None
                assert [process.stdout.readline() for _ in range(8)] == ["ready\n"] * 8
        lines = [line for process in started for line in process.communicate(timeout=60)[0].splitlines()]
    results = [json.loads(line) for line in lines]
    assert [process.returncode for process in started] == [0, 0]
    assert [result["found"] for result in results] == [{obj.path: obj.digest for obj in objects}] * 16
    hits = {tier: sum(result["counters"][tier]["hits"] for result in results) for tier in ("lake", "hot", "node")}
    assert hits == {"lake": len(objects), "hot": len(objects), "node": 14 * len(objects)}
    assert_all_is_held(objects, redis, *nodes)


def test_more_ranks_than_shards(zone: Zone, redis: Redis, env: dict[str, str], tmp_path: Path) -> None:
    """Each a process on a node of its own: none waits for a shard of its own, and the lake is read once for all."""
    few = Zone(tmp_path / "few", zone.url)
    objects = objects_of(publish(few, 2, rows=ROWS, width=WIDTH).table)
    nodes = [tmp_path / f"node{rank}" for rank in range(5)]
    jobs = [job(few, node, redis, settings={"rank": rank, "world": 5}) for rank, node in enumerate(nodes)]
    ranks = stream_reader.read_all(jobs, env, seconds=60)
    shares = zip(*(rank["batches"] for rank in ranks), strict=True)
    assert [[label for share in batch for label in share] for batch in shares] == undisturbed(few)
    assert sum(rank["counters"]["lake"]["hits"] for rank in ranks) == len(objects)
    assert_all_is_held(objects, redis, *nodes)


def test_a_stream_killed_amid_its_fetches_leaves_nothing(
    zone: Zone, s3: S3, redis: Redis, env: dict[str, str], tmp_path: Path
) -> None:
    """The next one reads what it would have read, and takes over what the dead one had begun."""
    node = tmp_path / "node"
    with FaultyProxy.before(s3.endpoint) as proxy:

        def stall(head: bytes) -> None:
            if proxy.passed > 1 << 20:  # of one shard at least
                proxy.stall()

        proxy.answer(stall)  # type: ignore[arg-type]
        endpoint = {"AWS_ENDPOINT_URL": f"http://{proxy.address}"}
        with stream_reader.start(job(zone, node, redis, lease=1), {**env, **endpoint}) as reader:
            try:
                wait_for(lambda: bool(NodeCache(node, BUDGET).digests()), "a shard on the node")
                wait_for(lambda: bool(leases(redis)), "the lease of one that doesn't come")
                assert list(node.rglob("*.tmp"))
            finally:
                reader.kill()
    wait_for(lambda: not leases(redis), "the leases to expire")
    [outcome] = stream_reader.read_all([job(zone, node, redis)], env)
    assert outcome["batches"] == undisturbed(zone)
    assert outcome["counters"]["node"]["hits"]
    assert_nothing_is_left(redis, node)
