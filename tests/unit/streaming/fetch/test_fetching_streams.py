"""A stream that fetches ahead: each shard once and in time, within its memory, and errors where they belong."""

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.core import url_to_fs
from support.flat_streams import flat_stream
from support.servers import wait_for
from support.watched_fetch import ROWS, SHARDS, Watched, paths, publish, size, threads

from pipelines.streaming import Stream, source
from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather.gatherer import Gatherer
from storage.cache import NodeCache, Tiered
from storage.errors import DigestError, LakeError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Shard


def make(tiers: Tiered, manifest: Manifest, **settings: Any) -> Stream:
    return flat_stream(
        tiers.zone, manifest, tiers=tiers, **{"split": "train", "batch_size": 8, "seed": 3, "window": 40, **settings}
    )


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("kept", ["memory", "node cache"])
def test_a_stream_fetches_each_shard_once_and_in_time(
    zone: Zone, manifest: Manifest, tmp_path: Path, lanes: int, kept: str
) -> None:
    tiers = Watched(zone)
    tiers.node = NodeCache(tmp_path / "node", 1 << 30) if kept == "node cache" else None
    with tiers, make(tiers, manifest, epochs=2, lanes=lanes) as stream:
        seen = [batch["label"].tolist() for batch in stream]
    assert sorted(tiers.opened) == sorted(paths(manifest))  # the second epoch finds all open
    with make(Tiered(zone), manifest, epochs=2, lanes=lanes, prefetch=0) as stream:
        assert [batch["label"].tolist() for batch in stream] == seen


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_bad_shard_is_named_by_the_first_batch_that_needs_it(
    zone: Zone, manifest: Manifest, damage: str, prefetch: int
) -> None:
    path, (fs, root) = paths(manifest)[5], url_to_fs(zone.url)
    with make(Tiered(zone), manifest, epochs=1) as stream:
        expected = [batch["label"] for batch in stream]
    first = next(step for step, labels in enumerate(expected) if ((labels // ROWS) == 5).any())
    whole = fs.cat_file(f"{root}/{path}")
    fs.rm_file(f"{root}/{path}")
    if damage == "flipped":
        fs.pipe_file(f"{root}/{path}", whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    with make(Tiered(zone), manifest, epochs=1, prefetch=prefetch) as stream:
        for step in range(first):
            assert (next(stream)["label"] == expected[step]).all()
        for _ in range(2):
            with pytest.raises(DigestError if damage == "flipped" else LakeError, match=path):
                next(stream)
        fs.pipe_file(f"{root}/{path}", whole)
        assert [batch["label"].tolist() for batch in stream] == [labels.tolist() for labels in expected[first:]]


def test_batches_come_as_far_as_the_shards_that_are_here(zone: Zone, manifest: Manifest) -> None:
    with make(Tiered(zone), manifest, epochs=1) as stream:
        expected = [batch["label"].tolist() for batch in stream]
    first = [
        next(step for step, some in enumerate(expected) if shard in np.floor_divide(some, ROWS))
        for shard in range(SHARDS)
    ]
    last = int(np.argmax(first))
    tiers = Watched(zone, held=paths(manifest)[last])
    tiers.gate.clear()
    with make(tiers, manifest, epochs=1) as stream:
        seen = [next(stream)["label"].tolist() for _ in range(first[last])]
        tiers.gate.set()
        seen.extend(batch["label"].tolist() for batch in stream)
    assert seen == expected
    assert first[last] > 8  # of the 32 that are planned together


def test_to_look_for_what_is_here_takes_no_longer_than_what_comes(
    zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for, locate = 0, Gatherer.locate

    def noted(self: Gatherer, shard: Any, row: Any, least: int | None = None) -> Any:
        nonlocal looked_for
        looked_for += len(shard)
        return locate(self, shard, row, least)

    monkeypatch.setattr(Gatherer, "locate", noted)
    monkeypatch.setattr(Fetcher, "is_here", lambda self, index: False)
    with make(Tiered(zone), manifest, epochs=1, batch_size=1) as stream:
        rows = len(list(stream))
    assert rows == ROWS * SHARDS
    assert looked_for <= 4 * rows  # once when planned, and twice what the time before found


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_version_that_is_replaced_while_it_is_read(
    zone: Zone, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped, and what a remote lake keeps, is delivered; else the missing shard is named."""
    monkeypatch.setattr(source, "_HANDED_OVER", 1)  # a batch at a time, so that shards are opened as late as can be
    monkeypatch.setattr(source, "_PLANNED", 1)
    place = zone if where == "remote" else Zone(tmp_path / "local")
    settings = {"epochs": 1, "window": 1, "first_window": 1, "lanes": 1, "prefetch": 0}
    manifest = publish(place)
    with make(Tiered(place), manifest, **settings) as stream:
        expected = [batch["label"].tolist() for batch in stream]
    with make(Tiered(place), manifest, **settings) as stream:
        seen = [next(stream)["label"].tolist()]
        publish(place, begin=1000)
        if where == "local":
            with pytest.raises(LakeError, match=r"objects/[0-9a-f]{64}\.arrow.*(dvc pull|dvc checkout)"):
                seen.extend(batch["label"].tolist() for batch in stream)
        else:
            seen.extend(batch["label"].tolist() for batch in stream)
    assert seen == expected[: len(seen)]
    assert where == "local" or len(seen) == len(expected)
    with make(Tiered(place), place.manifest(), **settings) as stream:
        assert min(min(batch["label"]) for batch in stream) == 1000


def test_memory_stays_within_what_the_settings_say(zone: Zone) -> None:
    manifest = publish(zone, shards=32)
    memory, ahead, lock = 12 * size(manifest), 2 * size(manifest), threading.Lock()
    opened, alive, most = Shard.open, 0, 0

    def own(nbytes: int) -> Any:
        return np.empty(nbytes, np.uint8)

    def count(nbytes: int) -> None:
        nonlocal alive, most
        with lock:
            alive += nbytes
            most = max(most, alive)

    def noted(*arguments: Any) -> Shard:
        shard = opened(*arguments)
        count(shard.buffer.size)
        weakref.finalize(shard, count, -shard.buffer.size)
        return shard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shard, "open", noted)
        with make(
            Tiered(zone), manifest, epochs=2, memory=memory, ahead=ahead, window=ROWS, lanes=1, allocate=own
        ) as stream:
            gatherer, seen = stream._source.gatherer, []
            for batch in stream:
                seen.append(batch["label"].tolist())
                course = gatherer.fetcher._course
                assert course is None or course.bytes <= ahead
                del batch
            assert gatherer.buffers.lent_bytes == 0
    assert 0 < most <= memory + 3 * size(manifest)  # of 32; see Gatherer._evict
    with make(Tiered(zone), manifest, epochs=2, window=ROWS, lanes=1) as stream:
        assert [batch["label"].tolist() for batch in stream] == seen


def test_forgetting_a_stream_amid_fetches_ends_all_threads(zone: Zone, manifest: Manifest) -> None:
    tiers = Watched(zone)
    stream = make(tiers, manifest, ahead=2 * size(manifest))
    next(stream)
    assert {thread.name for thread in threading.enumerate()} >= {"shardline-prefetch", "shardline-plan"}
    del stream
    wait_for(lambda: not threads("shardline-prefetch", "shardline-plan", "shardline-fetch"), "the end of all threads")
