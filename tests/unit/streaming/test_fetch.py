"""Fetching ahead: along the order, within its bound, and with errors where they belong."""

import pickle
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.core import url_to_fs
from support.flat_streams import flat_stream
from support.servers import wait_for

from pipelines.streaming import Stream, fetch, source
from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather.gatherer import Gatherer
from storage.cache import NodeCache, Tiered
from storage.errors import DigestError, LakeError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest
from storage.objects.retries import RangeReader
from storage.shards import Shard, encode_samples

ROWS, SHARDS = 32, 8


class Watched(Tiered):
    """A cache that notes what is opened, and holds it back while `gate` is closed: all, or what is `held`."""

    def __init__(self, zone: Zone, held: str = "") -> None:
        super().__init__(zone)
        self.opened: list[str] = []
        self.gate, self.held = threading.Event(), held
        self.gate.set()

    def open(self, obj: StoredObject) -> tuple[pa.Buffer, bool]:
        self.opened.append(obj.path)
        assert self.held not in ("", obj.path) or self.gate.wait(60)
        return super().open(obj)


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "shards", f"memory://{tmp_path}")


@pytest.fixture
def manifest(zone: Zone) -> Manifest:
    return publish(zone)


def publish(zone: Zone, begin: int = 0, shards: int = SHARDS) -> Manifest:
    """A version of shards whose rows are numbered through, from `begin` on."""
    records = []
    for first in range(begin, begin + ROWS * shards, ROWS):
        labels = np.arange(first, first + ROWS)
        columns = {"x": np.full((ROWS, 100), labels[:, None], np.float32), "label": labels}
        stored = zone.publish(encode_samples(columns, [f"id{label}" for label in labels]), ".arrow")
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
        records.append({**about, "rows": ROWS, "key": "", "split": "train", "tokens": 0, "stats": None})
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [100]}}, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def paths(manifest: Manifest) -> list[str]:
    return list(manifest.table["path"].to_pylist())


def along(*shards: int) -> list[tuple[int, Any]]:
    return [(0, np.array([shard])) for shard in shards]


def size(manifest: Manifest, index: int = SHARDS - 1) -> int:
    """Bytes of a shard; the last is among the largest, by the length of its ids."""
    return int(manifest.table["bytes"][index].as_py())


def test_shards_come_in_the_order_of_need_up_to_the_bound(zone: Zone, manifest: Manifest) -> None:
    tiers, opened = Watched(zone), set[int]()
    fetcher = Fetcher([(tiers, manifest.table)], ahead=3 * size(manifest))
    order = [5, 2, 7, 0, 1, 6]
    fetcher.start(along(*order), opened.__contains__)
    wait_for(lambda: len(tiers.opened) == 3, "three shards ahead")
    fetcher.start(along(), opened.__contains__)  # waits for the threads: nothing more was begun
    assert set(tiers.opened) == {paths(manifest)[index] for index in order[:3]}

    tiers.opened.clear()
    fetcher.start(along(*order), opened.__contains__)
    for done, index in enumerate(order, start=1):
        fetcher.open(index)
        opened.add(index)
        wait_for(lambda done=done: len(tiers.opened) == min(done + 3, 6), "as much ahead again")  # type: ignore[misc]
    assert sorted(tiers.opened) == sorted(paths(manifest)[index] for index in order)  # each once
    fetcher.stop()


def test_the_first_large_shard_comes_alone(zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_FIRST", size(manifest, 3))
    monkeypatch.setattr(fetch, "_TOGETHER", size(manifest) + 1)
    tiers = Watched(zone)
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)])
    fetcher.start(along(3, 4, 5, 6), lambda _: False)
    assert under_way(fetcher, tiers) == [paths(manifest)[3]]
    tiers.gate.set()
    wait_for(lambda: len(tiers.opened) == 4, "the others")
    fetcher.stop()


def test_shards_come_side_by_side_while_less_than_enough_is_under_way(
    zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the usual size, though they are a little larger than that."""
    monkeypatch.setattr(fetch, "_FIRST", size(manifest) + 1)
    monkeypatch.setattr(fetch, "_TOGETHER", size(manifest) + 1)
    tiers = Watched(zone)
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)])
    fetcher.start(along(3, 4, 5), lambda _: False)
    assert sorted(under_way(fetcher, tiers)) == sorted(paths(manifest)[3:5])
    tiers.gate.set()
    fetcher.stop()


@pytest.mark.parametrize(("far", "at_once"), [(False, 4), (True, 6)])
def test_many_small_shards_come_at_once_from_a_store_far_away(
    zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, far: bool, at_once: int
) -> None:
    monkeypatch.setattr(RangeReader, "far", far)
    monkeypatch.setattr(fetch, "_THREADS_FAR", 6)
    tiers = Watched(zone)
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)])
    fetcher.start(along(*range(SHARDS)), lambda _: False)
    assert sorted(under_way(fetcher, tiers)) == sorted(paths(manifest)[:at_once])
    assert len(threads("shardline-fetch")) <= at_once + 1
    tiers.gate.set()
    fetcher.stop()


def test_threads_that_find_nothing_to_fetch_end(
    zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many small shards at once, all but two."""
    monkeypatch.setattr(RangeReader, "far", True)
    tiers = Watched(zone)
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)], ahead=6 * size(manifest))
    fetcher.start(along(*range(SHARDS)), lambda _: False)
    assert len(under_way(fetcher, tiers)) == 6
    tiers.gate.set()
    wait_for(lambda: len(threads("shardline-fetch")) == 2, "the others to end")
    for index in (0, 1):
        fetcher.open(index)
    wait_for(lambda: len(tiers.opened) == SHARDS, "the rest")
    fetcher.stop()


def under_way(fetcher: Fetcher, tiers: Watched) -> list[str]:
    """What is being fetched, once nothing more is begun: as many threads hold shards as are held, and one waits."""
    course, waiting = fetcher._course, fetcher._changed._waiters  # type: ignore[attr-defined]
    assert course is not None
    wait_for(lambda: course.busy == len(tiers.opened) == course.workers - 1 and len(waiting) == 1, "a thread waiting")
    return tiers.opened


def threads(*names: str) -> list[threading.Thread]:
    """The threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def test_a_shard_larger_than_the_bound_comes_alone_and_none_without_a_bound(zone: Zone, manifest: Manifest) -> None:
    tiers = Watched(zone)
    fetcher = Fetcher([(tiers, manifest.table)], ahead=1)
    fetcher.start(along(3, 4), lambda _: False)
    wait_for(lambda: len(tiers.opened) == 1, "one shard ahead")
    fetcher.stop()
    assert tiers.opened == [paths(manifest)[3]]
    Fetcher([(tiers, manifest.table)], ahead=0).start(along(3, 4), lambda _: False)
    assert not threads("shardline-fetch")
    assert tiers.opened == [paths(manifest)[3]]


def test_what_is_needed_now_does_not_wait_for_what_is_ahead(zone: Zone, manifest: Manifest) -> None:
    tiers = Watched(zone)
    fetcher = Fetcher([(tiers, manifest.table)], ahead=2 * size(manifest))
    fetcher.start(along(1, 2, 3), lambda _: False)
    wait_for(lambda: len(tiers.opened) == 2, "two shards ahead")
    assert fetcher.open(6)[0].size == size(manifest, 6)
    fetcher.stop()


def test_what_is_being_opened_is_not_fetched_again(zone: Zone, manifest: Manifest) -> None:
    tiers, opened = Watched(zone), set[int]()
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)], ahead=size(manifest))
    fetcher.start(along(7, 2, 3), opened.__contains__)
    wait_for(lambda: len(tiers.opened) == 1, "shard 7 under way")
    consumer = threading.Thread(target=fetcher.open, args=(2,))
    consumer.start()
    wait_for(lambda: len(tiers.opened) == 2, "the consumer opens shard 2")
    tiers.gate.set()
    consumer.join()
    fetcher.open(7)
    opened.add(7)
    wait_for(lambda: len(tiers.opened) == 3, "one more ahead")
    fetcher.stop()
    assert tiers.opened == [paths(manifest)[index] for index in (7, 2, 3)]


def test_only_this_epoch_and_the_next_are_fetched(zone: Zone, manifest: Manifest) -> None:
    tiers = Watched(zone)
    fetcher = Fetcher([(tiers, manifest.table)])
    fetcher.start([(epoch, np.array([epoch])) for epoch in range(6)], lambda _: False)
    wait_for(lambda: len(tiers.opened) == 2, "two epochs ahead")
    fetcher.reached(2)
    wait_for(lambda: len(tiers.opened) == 4, "four epochs ahead")
    fetcher.stop()
    assert set(tiers.opened) == set(paths(manifest)[:4])


def test_closing_cancels_and_waits_for_what_is_under_way(zone: Zone, manifest: Manifest) -> None:
    tiers = Watched(zone)
    tiers.gate.clear()
    fetcher = Fetcher([(tiers, manifest.table)])
    fetcher.start(along(*range(8)), lambda _: False)
    wait_for(lambda: len(tiers.opened) == 4, "four fetches under way")
    threading.Timer(0.2, tiers.gate.set).start()
    fetcher.stop()
    assert len(tiers.opened) == 4


def test_a_failure_ahead_is_tried_again_when_the_shard_is_needed(zone: Zone, manifest: Manifest) -> None:
    path = paths(manifest)[4]
    fs, root = url_to_fs(zone.url)
    whole = fs.cat_file(f"{root}/{path}")
    tiers = Watched(zone)
    fetcher = Fetcher([(tiers, manifest.table)])
    for restored in (False, True):
        fs.rm_file(f"{root}/{path}")
        fetcher.start(along(4), lambda _: False)
        wait_for(lambda: tiers.opened != [], "the shard tried ahead")
        fetcher._course.threads[0].join()  # type: ignore[union-attr]
        if restored:
            fs.pipe_file(f"{root}/{path}", whole)
            assert fetcher.open(4)[0].size == len(whole)
        else:
            with pytest.raises(LakeError, match=path):
                fetcher.open(4)
            fs.pipe_file(f"{root}/{path}", whole)
        tiers.opened.clear()
    fetcher.stop()


def test_it_can_be_pickled(zone: Zone, manifest: Manifest) -> None:
    again = pickle.loads(pickle.dumps(Fetcher([(Tiered(zone), manifest.table)], ahead=77)))
    assert (again.ahead, len(again)) == (77, SHARDS)
    assert again.open(3)[0].size == size(manifest, 3)


# -- in a stream -----------------------------------------------------------------------------------------------------


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
