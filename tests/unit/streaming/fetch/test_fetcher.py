"""Fetching ahead: along the order, within its bound, and with errors where they belong."""

import pickle
import threading

import numpy as np
import pytest
from fsspec.core import url_to_fs
from support.servers import wait_for
from support.watched_fetch import SHARDS, Watched, along, paths, size, threads

from pipelines.streaming import fetch
from pipelines.streaming.fetch import Fetcher
from storage.cache import Tiered
from storage.errors import LakeError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.objects.retries import RangeReader


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
