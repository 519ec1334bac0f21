"""What a loop over a stream gives, and what `len()` says: the table of docs/streaming.md, row by row."""

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from support.servers import wait_for

from pipelines.streaming import Batch, Stream
from pipelines.streaming.source import Source
from storage.errors import Cancelled, ParamsError
from storage.lake import Zone

ROWS, STEPS = 75, 10  # of an epoch; the last batch is short
FIRST = [(0, step) for step in range(STEPS)]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    zone, made = Zone(tmp_path), []
    manifest = publish(zone, 5, rows=15, width=2)

    def stream(**settings: Any) -> Stream:
        made.append(flat_stream(zone, manifest, **{"split": "train", "batch_size": 8, "seed": 3, **settings}))
        return made[-1]

    yield stream
    for one in made:
        one.close()


def places(batches: Any) -> list[tuple[int, int]]:
    return [(batch.epoch, batch.step) for batch in batches]


PREFETCH = pytest.mark.parametrize("prefetch", [0, 2])


@PREFETCH
def test_a_loop_that_begins_at_the_end_begins_anew(make: Callable[..., Stream], prefetch: int) -> None:
    """However the end was reached: by a loop that was told so, or by one that took the last batch and left."""
    stream = make(epochs=1, shuffle=False, prefetch=prefetch)
    for _ in range(3):
        assert len(stream) == STEPS
        assert sum(batch.count for batch in stream) == ROWS
    assert places(islice(stream, STEPS)) == FIRST
    assert (len(stream), stream.position) == (STEPS, (1, 0))
    assert places(stream) == FIRST
    two = make(epochs=2, prefetch=prefetch)
    assert places(two) == places(two) == [*FIRST, *((1, step) for step in range(STEPS))]


def test_an_iterator_that_has_ended_stays_at_its_end(make: Callable[..., Stream]) -> None:
    """So that one may be taken in parts until there is nothing more."""
    batches, parts = iter(make(epochs=1)), []
    while part := list(islice(batches, 4)):
        parts.append(len(part))
    assert parts == [4, 4, 2]
    assert list(batches) == []


def test_at_the_end_next_raises_as_often_as_it_is_asked(make: Callable[..., Stream]) -> None:
    stream = make(epochs=1)
    list(stream)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


@PREFETCH
def test_of_a_loaded_end_nothing_is_left_once(make: Callable[..., Stream], prefetch: int) -> None:
    """A training that had ended is not taken again because it was resumed."""
    stream = make(epochs=1, prefetch=prefetch)
    list(stream)
    end = stream.state_dict()
    again = make(epochs=1, prefetch=prefetch)
    again.load_state_dict(end)
    assert len(again) == 0
    assert list(iter(iter(again))) == []
    assert len(again) == STEPS
    assert places(again) == FIRST
    again.load_state_dict(end)
    again.set_epoch(0)
    assert (len(again), places(again)) == (STEPS, FIRST)


@PREFETCH
@pytest.mark.parametrize("closed", [False, True])
def test_a_loop_goes_on_after_one_that_was_broken_off(make: Callable[..., Stream], prefetch: int, closed: bool) -> None:
    stream, taken = make(epochs=1, prefetch=prefetch), []
    for batch in stream:
        taken.append(batch)
        if batch.step == 2:
            break
    if closed:
        stream.close()
    assert len(stream) == STEPS  # of the epoch, not of what is left
    assert places([*taken, *stream]) == FIRST


@PREFETCH
def test_a_loop_goes_on_after_one_that_raised(
    make: Callable[..., Stream], prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the loop's own code did, or the making of a batch: that one comes again."""
    stream, taken = make(epochs=1, prefetch=prefetch), []

    def loop() -> None:
        for batch in stream:
            taken.append(batch)
            assert batch.step < 2

    with pytest.raises(AssertionError):
        loop()
    assert places(taken) == FIRST[:3]
    assert stream.position == (0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Source, "load", lambda *_: 1 / 0)
        stream.set_epoch(0)
        batches = iter(stream)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                next(batches)
    assert stream.position == (0, 0)
    assert places(batches) == FIRST


def test_a_stream_without_an_end_goes_on_into_the_next_epoch(make: Callable[..., Stream]) -> None:
    stream = make()
    assert places(islice(stream, 12)) == [*FIRST, (1, 0), (1, 1)]
    assert (len(stream), stream.position) == (STEPS, (1, 2))


def test_an_epoch_that_the_stream_does_not_have_is_refused(make: Callable[..., Stream]) -> None:
    stream, endless = make(epochs=2), make()
    next(stream)
    for epoch in (-1, 2, 2**70, "1", 1.0, True, None):
        with pytest.raises(ParamsError, match=rf"epoch={epoch!r}: must be an int from 0 to 1\."):
            stream.set_epoch(epoch)  # type: ignore[arg-type]
    assert stream.position == (0, 1)
    endless.set_epoch(2**40)
    assert len(next(endless)["label"]) == 8
    with pytest.raises(ParamsError, match=rf"epoch={2**70}: must begin within the first"):
        endless.set_epoch(2**70)
    assert endless.position == (2**40, 1)


def test_a_stream_is_no_list(make: Callable[..., Stream]) -> None:
    with pytest.raises(TypeError, match=r"no \[3\].*StreamLoader\(stream.*stream\.batch\(i\)"):
        make()[3]


def test_a_batch_by_its_place_may_be_of_any_epoch(make: Callable[..., Stream]) -> None:
    stream = make(epochs=2)
    whole = list(stream)
    for place, batch in enumerate(whole):
        assert stream.batch(place % STEPS, place // STEPS).ids() == batch.ids()
    assert stream.batch(-1).ids() == whole[STEPS - 1].ids()  # the next loop's epoch
    with pytest.raises(ParamsError, match="epoch=2: must be an int from 0 to 1"):
        stream.batch(0, 2)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@PREFETCH
@pytest.mark.usefixtures("quick_switches")
def test_threads_that_take_from_one_stream_get_each_batch_once(make: Callable[..., Stream], prefetch: int) -> None:
    stream, taken = make(epochs=30, batch_size=2, prefetch=prefetch), list[tuple[int, int]]()

    def take() -> None:
        taken.extend((batch.epoch, batch.step) for batch in iter(lambda: next(stream, None), None))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == [(epoch, step) for epoch in range(30) for step in range(38)]
    assert stream.position == (30, 0)


def test_closing_tells_the_thread_that_waits_for_a_batch(
    make: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not take that for the end of the data."""
    stream, told, held = make(epochs=1), list[BaseException](), threading.Event()
    expected = places(make(epochs=1))
    load = Source.load

    def slow(source: Source, group: Any) -> list[Batch]:
        held.set()
        stopped.wait(60)
        return load(source, group)

    def take() -> None:
        try:
            list(stream)
        except Cancelled as error:
            told.append(error)

    stopped = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(Source, "load", slow)
        thread = threading.Thread(target=take)
        thread.start()
        assert held.wait(60)
        wait_for(lambda: stream._feed is not None and stream._feed._ahead._waiting, "a batch is waited for")  # type: ignore[union-attr]
        closing = threading.Thread(target=stream.close)
        closing.start()
        wait_for(lambda: told or stream._feed is None or stream._feed._ahead._closed, "it is being closed")  # type: ignore[union-attr]
        stopped.set()
        thread.join(60)
        closing.join(60)
    assert [str(error) for error in told] == [
        "The stream was closed while a batch of it was waited for. The next loop goes on."
    ]
    assert places(stream) == expected
