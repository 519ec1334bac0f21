"""The collector of cyclic garbage: seldom while libraries load, as usual when training begins."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from pipelines.runtime import gc_tuning


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    usual = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*usual)


class Node:
    """One of two that hold each other."""

    def __init__(self) -> None:
        self.other = self


def test_garbage_waits_while_libraries_load_and_goes_when_training_begins() -> None:
    gc_tuning.rest()
    waiting = weakref.ref(Node())
    kept = [[] for _ in range(5_000)]  # enough for the usual collector
    assert waiting() is not None
    gc_tuning.work()
    gone = weakref.ref(Node())
    kept += [[] for _ in range(5_000)]
    assert gone() is None


def test_what_is_loaded_is_put_aside_once() -> None:
    gc_tuning.rest()
    gc_tuning.work()
    aside = gc.get_freeze_count()
    assert aside > 0
    gone = weakref.ref(Node())
    gc_tuning.work()
    assert gc.get_freeze_count() <= aside  # some of it may have gone by itself
    gc.collect()
    assert gone() is None
