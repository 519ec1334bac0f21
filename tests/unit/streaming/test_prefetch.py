"""Items are prepared ahead in a thread; a consumer that is back at once makes them itself; where allowed, both do."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import wait_for

from pipelines.streaming import prefetch
from pipelines.streaming.prefetch import Prefetcher

DEPTH = 2


def recording(made_by: list[int], count: int = 50) -> Iterator[int]:
    for item in range(count):
        made_by.append(threading.get_ident())
        yield item


def test_a_consumer_that_is_back_at_once_makes_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    made_by: list[int] = []
    prefetcher = Prefetcher(recording(made_by), DEPTH)
    assert list(prefetcher) == list(range(50))
    assert set(made_by[DEPTH + 1 :]) == {threading.get_ident()}
    prefetcher.close()


def test_one_that_is_away_for_longer_finds_them_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 0)
    made_by: list[int] = []
    prefetcher = Prefetcher(recording(made_by), DEPTH)
    assert list(prefetcher) == list(range(50))
    assert set(made_by) == {prefetcher._thread.ident}
    prefetcher.close()


def test_the_thread_works_when_a_quick_consumer_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=0.0)
    monkeypatch.setattr(prefetch, "time", clock)
    made_by: list[int] = []
    prefetcher = Prefetcher(recording(made_by), DEPTH)
    taken = [next(prefetcher) for _ in range(10)]
    assert made_by[-1] == threading.get_ident()
    wait_for(lambda: bool(prefetcher._changed._waiters), "the thread waits", every=0.001)  # type: ignore[attr-defined]
    clock.now += 1
    wait_for(lambda: len(made_by) == 10 + DEPTH, "what comes next is made ahead")
    assert made_by[-1] == prefetcher._thread.ident
    assert [*taken, *prefetcher] == list(range(50))
    prefetcher.close()


@given(away=st.lists(st.booleans(), min_size=20, max_size=20), depth=st.integers(1, 3), at_once=st.booleans())
def test_every_item_comes_once_and_in_order(away: list[bool], depth: int, at_once: bool) -> None:
    made_by: list[int] = []
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "time", clock)
        prefetcher = Prefetcher(recording(made_by, len(away)), depth, lambda number: number * 2, at_once=at_once)
        taken = []
        for longer in away:
            clock.now += longer
            taken.append(next(prefetcher))
            assert len(made_by) <= len(taken) + depth + 1
        assert taken == list(range(0, 2 * len(away), 2))
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(prefetcher)
        prefetcher.close()
    assert not prefetcher._thread.is_alive()


@pytest.mark.parametrize("brief", [0, 60])
def test_an_error_comes_after_what_was_made_before_it(brief: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", brief)

    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyError("five")

    prefetcher = Prefetcher(items(), DEPTH)
    assert [next(prefetcher) for _ in range(5)] == list(range(5))
    for _ in range(2):
        with pytest.raises(KeyError, match="five"):
            next(prefetcher)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


@pytest.mark.parametrize("brief", [0, 60])
def test_closing_closes_the_iterator_in_the_thread(brief: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", brief)
    closed_by: list[int] = []

    def items() -> Iterator[int]:
        try:
            yield from range(50)
        finally:
            closed_by.append(threading.get_ident())

    prefetcher = Prefetcher(items(), DEPTH)
    for _ in range(10):
        next(prefetcher)
    prefetcher.close()
    assert closed_by == [prefetcher._thread.ident]
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_closing_waits_for_the_item_that_another_consumer_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    amid, gate = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield from range(10)
        amid.set()
        assert gate.wait(60)
        yield 10

    prefetcher, taken = Prefetcher(items(), 1), list[int]()
    consumer = threading.Thread(target=lambda: taken.extend(next(prefetcher) for _ in range(11)))
    consumer.start()
    assert amid.wait(60)
    prefetcher.close(wait=False)
    assert prefetcher._thread.is_alive()
    gate.set()
    prefetcher.close()
    consumer.join(60)
    assert taken == list(range(11))


def test_the_next_item_is_made_while_one_that_was_waited_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 0)
    gates = [threading.Event(), threading.Event()]
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item, gate in enumerate(gates):
            begun.append(item)
            assert gate.wait(60)
            yield item

    prefetcher = Prefetcher(items(), 1)
    consumer = threading.Thread(target=lambda: next(prefetcher))
    consumer.start()
    wait_for(lambda: prefetcher._waiting, "the consumer waits", every=0.001)
    gates[0].set()
    consumer.join(60)
    wait_for(lambda: begun == [0, 1], "the next item is begun", seconds=10)
    gates[1].set()
    prefetcher.close()


@pytest.fixture
def meeting() -> Iterator[Callable[[int], int]]:
    """Makes item 2 and item 3 only once both are being made."""
    both = threading.Barrier(2)

    def make(number: int) -> int:
        if number in (2, 3):
            both.wait(60)
        return number

    yield make
    both.abort()


def test_the_consumer_and_the_thread_make_items_at_once(
    meeting: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    prefetcher = Prefetcher(iter(range(8)), DEPTH, meeting, at_once=True)
    assert list(prefetcher) == list(range(8))
    prefetcher.close()


def test_one_item_at_a_time_unless_both_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    making: set[int] = set()
    others: list[set[int]] = []
    pause = threading.Event()

    def make(number: int) -> int:
        others.append(set(making))
        making.add(number)
        pause.wait(0.001)  # the other thread's chance
        making.remove(number)
        return number

    prefetcher = Prefetcher(iter(range(50)), DEPTH, make)
    assert list(prefetcher) == list(range(50))
    assert others == [set()] * 50
    prefetcher.close()


@pytest.mark.parametrize("brief", [0, 60])
@pytest.mark.parametrize("at_once", [False, True])
def test_an_error_of_one_item_comes_in_its_place(brief: float, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", brief)

    def make(number: int) -> int:
        if number >= 5:
            raise KeyError(number)
        return number

    prefetcher = Prefetcher(iter(range(50)), DEPTH, make, at_once=at_once)
    assert [next(prefetcher) for _ in range(5)] == list(range(5))
    for _ in range(2):
        with pytest.raises(KeyError, match="5"):
            next(prefetcher)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


@pytest.mark.parametrize("at_once", [False, True])
def test_an_interrupted_consumer_is_told_at_once(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    consumer = threading.get_ident()
    interrupted = []

    def make(number: int) -> int:
        if threading.get_ident() == consumer:
            interrupted.append(number)
            raise KeyboardInterrupt
        return number

    prefetcher = Prefetcher(iter(range(10**6)), DEPTH, make, at_once=at_once)
    taken: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        taken.extend(prefetcher)
    assert len(interrupted) == 1
    assert taken == list(range(len(taken)))
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


@pytest.mark.parametrize("at_once", [False, True])
def test_one_that_has_ended_is_freed_without_the_garbage_collector(at_once: bool) -> None:
    """It may hold shards of some hundred megabytes, which the next epoch's arrive in."""
    gc.disable()
    try:
        prefetcher = Prefetcher(iter(range(9)), DEPTH, at_once=at_once)
        assert list(prefetcher) == list(range(9))
        prefetcher.close()
        freed = weakref.ref(prefetcher)
        del prefetcher
        assert freed() is None
    finally:
        gc.enable()
