"""Readers that are killed, hang or are cancelled amid a fetch: they leave nothing, and nobody waits for long."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.faulty_caches import (
    PART,
    READER,
    counted,
    digest_of,
    environment,
    hot,
    job_of,
    leases,
    lines,
    parts,
    read_all,
)
from support.servers import Redis, wait_for

from storage.cache import NodeCache, Tiered
from storage.cache.node import cache as node_module
from storage.cache.node.cache import Claim
from storage.errors import Cancelled
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")


@contextmanager
def stopped_reader(job: str) -> Iterator["subprocess.Popen[str]"]:
    """A reader that has come to where it stops."""
    with subprocess.Popen([*READER, job], env=environment(), stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "stopped\n"
            yield reader
        finally:
            reader.kill()


@pytest.mark.parametrize("place", ["lease", "half", "write", "writing", "rename"])
def test_a_reader_killed_leaves_nothing(
    zone: Zone, objects: list[StoredObject], redis: Redis, tmp_path: Path, place: str
) -> None:
    """Killed while it fetches through both tiers: the next one gets everything, and the tiers count right.

    What it leaves has the size of the whole from the start, and is never taken for it: it has no shard's name.
    """
    folder = tmp_path / "cache"
    job = job_of(zone, objects[:1], node=str(folder), hot=redis.url, stop_at=place, lease=1)
    with stopped_reader(job):
        assert len(leases(redis)) == 1
        arrived = {"lease": 0, "half": 1}.get(place, 4)
        wait_for(lambda: len(parts(redis)) == arrived, "what has arrived to be pushed")
    [left] = (folder / "shardline" / "objects").iterdir()
    size = objects[0].bytes
    written = {"writing": size // 2, "rename": size}.get(place, 0)
    assert left.suffix == ".tmp"
    assert left.read_bytes() == bytes(zone.read(objects[0].path)[:written]).ljust(size, b"\0")
    with Tiered(zone, NodeCache(folder, 64 * PART), hot(redis.url, lease=1, timeout=5)) as cache:
        assert read_all(cache, objects) < 20
    assert cache.counters()["lake"].hits == (7 if arrived == 4 else 8)  # all its parts had been pushed
    assert cache.counters()["node"].hits == 0
    kept = {file.name: digest_of(file) for file in (folder / "shardline" / "objects").iterdir()}
    assert kept == {f"{obj.digest}.arrow": obj.digest for obj in objects}
    wait_for(lambda: not leases(redis), "the lease to expire")
    total = sum(obj.bytes for obj in objects)
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == total
    assert counted(redis) == total
    assert len(parts(redis)) == 4 * len(objects)


@pytest.mark.parametrize("place", ["half", "writing", "rename"])
def test_stale_temporary_files_are_swept(zone: Zone, objects: list[StoredObject], tmp_path: Path, place: str) -> None:
    folder = tmp_path / "cache"
    with stopped_reader(job_of(zone, objects[:1], node=str(folder), stop_at=place)):
        pass
    assert len(list(folder.rglob("*.tmp"))) == 1
    index = json.loads((folder / "shardline" / "index.json").read_text())
    (folder / "shardline" / "index.json").write_text(json.dumps(index | {"counted": 0}))
    with Tiered(zone, NodeCache(folder, 64 * PART)) as cache:
        read_all(cache, objects[1:2])
    assert not list(folder.rglob("*.tmp"))
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == objects[1].bytes


def test_a_reader_that_hangs_is_waited_for_no_longer_than_the_time_out(
    zone: Zone, objects: list[StoredObject], redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is alive and renews its lease, but its read from the lake doesn't come to an end."""
    folder = tmp_path / "cache"
    with stopped_reader(job_of(zone, objects[:1], node=str(folder), hot=redis.url, stop_at="lease", lease=1)):
        node, remote = NodeCache(folder, 64 * PART, timeout=0.5), hot(redis.url, wait=1.5, lease=1)
        with Tiered(zone, node, remote) as cache:
            assert read_all(cache, objects[:1]) < 8
    assert len(lines(caplog)) == 2  # one for each tier


HOLDER = """
import signal, sys
from pathlib import Path
from storage.cache import NodeCache
with NodeCache(Path(sys.argv[1]), 1 << 26)._index():
    print("locked", flush=True)
    signal.pause()
"""


def test_a_neighbour_that_is_stopped_with_the_index_costs_one_time_out(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    with Tiered(zone, NodeCache(folder, 64 * PART)) as before:
        read_all(before, objects[:1])
    cache = Tiered(zone, NodeCache(folder, 64 * PART, timeout=2))
    assert cache.node is not None
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as neighbour:
        try:
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline() == "locked\n"
            neighbour.send_signal(signal.SIGSTOP)
            assert 1.9 < read_all(cache, objects) < 3.5
            assert cache.counters()["node"].hits == 1  # what is there needs no index
            [line] = lines(caplog)
            assert (
                f"{folder}/shardline/index.json has been locked by another process for 2 s (cache.hot.wait_s)" in line
            )
            breaker = cache.node._lock._breaker
            until = breaker.until

            def tries_again() -> bool:
                assert read_all(cache, objects[1:2]) < 1.5
                return breaker.until > until

            wait_for(tries_again, "another attempt", seconds=10)
        finally:
            neighbour.kill()

    def comes_back() -> bool:
        read_all(cache, objects)
        return len(cache.node.digests()) == len(objects)  # type: ignore[union-attr]

    wait_for(comes_back, "new shards to be kept again", seconds=20)
    assert len(lines(caplog)) == 2
    assert "is free again" in lines(caplog)[1]
    assert not list(folder.rglob("*.tmp"))
    assert json.loads((folder / "shardline" / "index.json").read_text())["bytes"] == sum(obj.bytes for obj in objects)
    cache.close()


def test_the_lock_of_a_file_that_is_gone_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One opens the temporary file; before it has the lock, its holder gives up and another begins a new file."""
    first, second, third = (NodeCache(tmp_path / "cache", 64 * PART, timeout=0.3) for _ in range(3))
    digest, claims = "0" * 64, []
    begun = first.claim(digest, PART)
    assert isinstance(begun, Claim)
    try_lock = node_module.try_lock

    def late(descriptor: int) -> bool:
        monkeypatch.setattr(node_module, "try_lock", try_lock)
        begun.abandon()
        claims.append(third.claim(digest, PART))
        return try_lock(descriptor)

    monkeypatch.setattr(node_module, "try_lock", late)
    assert second.claim(digest, PART) is None
    assert isinstance(claims[0], Claim)
    file = claims[0].commit(memoryview(bytes(PART)))
    assert isinstance(file, Path)
    assert file.stat().st_size == PART


def test_a_fetch_that_was_cancelled_elsewhere_is_done_by_who_waited_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two streams of a process share tiers, and the one that fetches a shard is closed."""
    begun, closed, tries = threading.Event(), threading.Event(), list[bool]()

    def fetch(tiers: Tiered, obj: StoredObject, behind: bool) -> bytes:
        tries.append(behind)
        if len(tries) > 1:
            return b"here"
        begun.set()
        closed.wait()
        raise Cancelled("nobody waits for it any more")

    monkeypatch.setattr(Tiered, "_fetch", fetch)
    obj = StoredObject("objects/a.arrow", "a", 4, 4)
    with Tiered(Zone(tmp_path)) as tiers, ThreadPoolExecutor(2) as pool:
        first = pool.submit(tiers.fetch, obj)
        begun.wait()
        second = pool.submit(tiers.fetch, obj)
        wait_for(second.running, "the other to wait")
        closed.set()
        assert second.result() == b"here"
        with pytest.raises(Cancelled):
            first.result()
