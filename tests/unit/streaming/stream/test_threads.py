"""The thread of a stream: it begins with the first batch, stays within its depth, and ends with the stream."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
from support.flat_streams import flat_stream
from support.servers import wait_for
from support.small_shards import make

from pipelines.streaming.prefetch import Prefetcher, close_items
from storage.lake import Zone
from storage.manifest import Manifest


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shardline-prefetch"]


def test_no_thread_before_the_first_batch_nor_after_close_nor_at_the_end(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        assert not prefetching()
        next(stream)
        assert len(prefetching()) == 1
    assert not prefetching()
    with make(zone, samples, epochs=1) as stream:
        list(stream)
        assert not prefetching()


def test_a_forgotten_stream_ends_its_thread(zone: Zone, samples: Manifest) -> None:
    stream = make(zone, samples)
    batch = next(stream)
    assert prefetching()
    del stream
    gc.collect()
    wait_for(lambda: not prefetching(), "the end of its thread")
    assert batch.ids()  # which needs the shards, not the stream


def test_the_prefetcher_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    prefetcher = Prefetcher(items(), depth=3)
    for taken in range(50):
        assert next(prefetcher) == taken
        assert len(made) <= taken + 1 + 3 + 1
    prefetcher.close()
    assert len(made) < 100


def test_the_prefetcher_keeps_nothing_that_was_taken() -> None:
    hold = threading.Event()

    def items() -> Iterator[set[int]]:
        yield {1}
        assert hold.wait(60)

    prefetcher = Prefetcher(items(), depth=1)
    taken = weakref.ref(next(prefetcher))
    wait_for(lambda: taken() is None, "the item is let go", seconds=10)
    hold.set()
    prefetcher.close()


def test_waiting_is_measured(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        assert stream.wait_seconds == 0
        next(stream)
        waited = stream.wait_seconds
        assert waited > 0
        stream.batch(0)
        assert stream.wait_seconds == waited


def test_a_second_interruption_loses_nothing(zone: Zone, samples: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Ctrl-C while the first one's threads are waited for: the next loop goes on from the state."""
    settings = {"split": "train", "batch_size": 8, "seed": 3, "epochs": 1}
    with flat_stream(zone, samples, **settings) as stream:  # type: ignore[arg-type]
        expected = [batch["label"].tolist() for batch in stream]
    with flat_stream(zone, samples, **settings) as stream:  # type: ignore[arg-type]
        seen = [next(stream)["label"].tolist()]

        def interrupted(items: object) -> None:
            close_items(items)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr("pipelines.streaming.feed.close_items", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream._restart()
        monkeypatch.undo()
        seen.extend(batch["label"].tolist() for batch in stream)
    assert seen == expected


def test_a_forgotten_prefetcher_is_told_and_not_waited_for() -> None:
    """Garbage is collected in any thread, and one that the item needs may not wait for the item."""
    made, gate = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        made.set()
        assert gate.wait(60)
        yield 1

    prefetcher = Prefetcher(items(), 1)
    assert made.wait(60)
    prefetcher.close(wait=False)
    assert prefetcher._thread.is_alive()
    gate.set()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()
