"""A lake that gets another version, or stays away, while a stream is read; and a disk that is full."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.faulty_proxy import FaultyProxy
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from support.servers import wait_for
from support.stream_site import (
    BEFORE,
    LAKE_TIMEOUT,
    ROWS,
    SETTINGS,
    SHARDS,
    SLACK,
    Site,
    assert_nothing_is_left,
    assert_whole,
    open_stream,
    take,
    undisturbed,
)

from pipelines.streaming.fetch import Fetcher, Opened
from storage.cache import NodeCache, Tiered
from storage.errors import LakeError
from storage.lake import Zone

pytestmark = pytest.mark.xdist_group("s3")


@pytest.mark.parametrize("old", ["kept", "deleted"])
def test_a_version_that_is_replaced_meanwhile(site: Site, old: str) -> None:
    """The lake keeps what it holds, so the old version is read to its end. Somebody may delete that by hand: then what
    has come is delivered, and the batch that needs more names it."""
    zone = Zone(site.folder / "zone", "s3://lake/stream-faults-replaced", timeout=LAKE_TIMEOUT)
    paths = publish(zone, SHARDS, rows=ROWS, width=2048).table["path"].to_pylist()
    expected = undisturbed(zone)
    site.read(zone)
    with site.tiers, open_stream(site.tiers) as stream:
        seen = take(stream, BEFORE)
        publish(zone, 1, rows=ROWS, width=2048, first=ROWS * SHARDS)
        begun = time.monotonic()
        if old == "kept":
            seen += take(stream, len(expected) - BEFORE)
            assert seen == expected
        else:
            for path in paths:
                zone.reader.delete(path)
            with pytest.raises(LakeError, match=f"{zone.url}/objects/.*: an object that the manifest names") as caught:
                seen.extend(batch for _ in expected for batch in take(stream, 1))
            assert BEFORE <= len(seen) < len(expected) // 2
            assert seen == expected[: len(seen)]
            needed = {paths[label // ROWS] for label in expected[len(seen)][0]}
            assert any(path in str(caught.value) for path in needed)
        assert time.monotonic() - begun < SLACK
    with flat_stream(zone, zone.manifest(), epochs=1, **SETTINGS) as stream:
        assert sorted(label for labels, _ in take(stream, None) for label in labels) == [
            *range(ROWS * SHARDS, ROWS * (SHARDS + 1))
        ]
    assert_nothing_is_left(site, zone.reader.paths())


@pytest.mark.parametrize("fault", [FaultyProxy.down, FaultyProxy.stall])
def test_a_lake_that_stays_away_is_told_within_the_time_out(site: Site, fault: Callable[[FaultyProxy], None]) -> None:
    """No longer, though what was fetched ahead failed too."""
    timeout = 8.0
    zone = replace(site.zone, timeout=timeout)
    with Tiered(zone) as tiers, open_stream(tiers) as stream:
        take(stream, BEFORE)
        fault(site.proxy)
        came = [time.monotonic()]
        with pytest.raises(LakeError, match=r"objects/\w+.arrow: no progress in .*compute.lake_timeout=8"):
            came.extend(time.monotonic() for _ in stream)
        assert time.monotonic() - came[-1] < 1.5 * timeout


def test_a_stream_whose_lake_is_silent_is_closed_in_moments(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    opened = Fetcher.open

    def open_shard(fetcher: Fetcher, index: int) -> Opened:
        waits.append(index)
        shard = opened(fetcher, index)
        waits.remove(index)
        return shard

    monkeypatch.setattr(Fetcher, "open", open_shard)
    site.proxy.slow(1 << 20)  # the next shard isn't there when the first batch is
    with (
        Tiered(site.zone) as tiers,
        flat_stream(site.zone, site.zone.manifest(), tiers=tiers, prefetch=64, **SETTINGS) as s,
    ):
        next(s)
        site.proxy.stall()
        wait_for(lambda: bool(waits), "a shard that is waited for")
        begun = time.monotonic()
        s.close()
        assert time.monotonic() - begun < LAKE_TIMEOUT / 4


@pytest.mark.long
def test_an_interrupt_ends_a_process_that_waits_for_its_lake(site: Site, environment: dict[str, str]) -> None:
    job = {"folder": str(site.zone.folder), "url": site.zone.url, "settings": SETTINGS}
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    env = {**environment, **site.server.s3.env, "AWS_ENDPOINT_URL": f"http://{site.proxy.address}", "PYTHONPATH": path}
    site.proxy.slow(1 << 20)
    command = [sys.executable, str(REPOSITORY / "tests" / "support" / "stream_reader.py"), json.dumps(job)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(lambda: site.proxy.passed > 2 << 20, "the first shard")
        site.proxy.down()
        assert "no progress for" in process.stderr.readline()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT, told
        assert time.monotonic() - begun < SLACK


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MiB, in a mount namespace of another process: seen through that one's /proc."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = 'mount -t tmpfs -o size=12m tmpfs "$1" && echo mounted && cat'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
        yield Path(f"/proc/{holder.pid}/root{folder}")


def test_a_disk_that_is_full_for_the_thread_that_writes_behind(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of eight shards fit, which are so large that they are written past the page cache."""
    zone = Zone(tmp_path / "lake")
    publish(zone, 8, rows=ROWS, width=8192)
    expected, begun = undisturbed(zone), time.monotonic()
    node = NodeCache(small_disk / "node", 1 << 30)
    with Tiered(zone, node) as tiers, open_stream(tiers) as stream:
        assert take(stream, len(expected)) == expected
    assert time.monotonic() - begun < SLACK
    (record,) = caplog.records
    assert "the disk is full" in record.getMessage()
    assert record.threadName is not None
    assert record.threadName.startswith("shardline-node-cache")
    assert tiers.counters()["lake"].hits > 8  # what found no place was read again
    assert sorted(os.listdir(small_disk / "node" / "shardline" / "objects")) == sorted(
        f"{digest}.arrow" for digest in node.digests()
    )
    assert_whole(node)
