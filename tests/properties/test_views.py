"""Rows of any length are laid end to end as a plain loop would, wherever they lie."""

import mmap
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.gather import views
from pipelines.streaming.gather.ragged import Ragged
from pipelines.streaming.gather.views import end_to_end, views_of

SOURCES = [np.random.default_rng(seed).integers(0, 256, 5000, dtype=np.uint8) for seed in range(3)]
Picked = list[tuple[int, int, int]]


@st.composite
def several(draw: st.DrawFn) -> Picked:
    """(source, start, length) of each row."""
    longest = draw(st.sampled_from([0, 1, 3, 12, 13, 40, 5000]))
    return draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 5000 - longest), st.integers(0, longest)),
            max_size=40,
        )
    )


def seen(picked: Picked) -> pa.Array:
    addresses = np.array([SOURCES[source].ctypes.data + start for source, start, _ in picked], np.int64)
    return views_of(addresses, np.array([length for *_, length in picked], np.int64))


def plain(picked: Picked) -> list[bytes]:
    return [SOURCES[source][start : start + length].tobytes() for source, start, length in picked]


@given(picked=several(), near=st.sampled_from([0, 1 << 30]), data=st.data())
def test_a_part_is_laid_end_to_end_as_a_loop_would(picked: Picked, near: int, data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(picked)), st.integers(0, len(picked)))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_NEAR", near)
        got = Ragged(*end_to_end(seen(picked)[start:stop]))
    assert [row.tobytes() for row in got] == got.to_arrow().to_pylist() == plain(picked[start:stop])
    assert (got.values.dtype, got.offsets.dtype, len(got.values)) == (np.uint8, np.int64, got.offsets[-1])
    assert got.values.flags.writeable
    got.values[:] = 0  # it is memory of its own
    assert [row.tobytes() for row in Ragged(*end_to_end(seen(picked)))] == plain(picked)


@given(picked=several(), data=st.data())
def test_slices_are_views_and_padding_is_empty_rows(picked: Picked, data: st.DataObject) -> None:
    batch = Ragged(*end_to_end(seen(picked)))
    bound = st.one_of(st.none(), st.integers(-50, 50))
    place = slice(data.draw(bound), data.draw(bound))
    part = batch[place]
    assert [row.tobytes() for row in part] == [row.tobytes() for row in list(batch)[place]]
    assert not len(part.values) or np.shares_memory(part.values, batch.values)
    assert part.offsets[0] == 0
    assert part.to_arrow().to_pylist() == [row.tobytes() for row in part]
    longer = part.padded(len(part) + 3)
    assert [row.tobytes() for row in longer] == [*(row.tobytes() for row in part), b"", b"", b""]


def test_rows_beyond_4_gib_and_far_apart(tmp_path: Any) -> None:
    """Of a sparse file, of which only a few pages are touched; one row lies across the border of two windows."""
    size = (5 << 30) + 3
    source: Any = np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=(size,))
    border = -source.ctypes.data % (1 << views._SPAN)
    starts, lengths = [(4 << 30) + 5, 7, size - 9, border - 100, border], [3000, 2, 9, 300, 20]
    for start, length in zip(starts, lengths, strict=True):
        source[start : start + length] = np.arange(length) % 251
    expected = [source[start : start + length].tobytes() for start, length in zip(starts, lengths, strict=True)]
    batch = Ragged(*end_to_end(views_of(np.array(starts) + source.ctypes.data, np.array(lengths))))
    assert [row.tobytes() for row in batch] == expected


def share_of_another_thread(work: Callable[[], object]) -> float:
    """How fast a thread counts during `work`, beside how fast it does while nobody else needs the lock."""
    counted, done, rates = [0], threading.Event(), []

    def count() -> None:
        while not done.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    for step in (lambda: threading.Event().wait(0.1), work):
        before, begun = counted[0], time.perf_counter()
        step()
        rates.append((counted[0] - before) / (time.perf_counter() - begun))
    done.set()
    thread.join()
    return rates[1] / rates[0]


def test_the_copy_goes_on_without_the_interpreters_lock() -> None:
    source = np.ones(64 << 20, np.uint8)
    rows = views_of(np.full(16, source.ctypes.data), np.full(16, len(source)))
    assert share_of_another_thread(lambda: end_to_end(rows)) > 0.15  # holding the lock, 0.05 at most


@pytest.mark.parametrize("hold", [lambda values: values[1:], lambda values: memoryview(values)])
def test_what_is_held_keeps_its_memory(hold: Any) -> None:
    picked: Picked = [(0, 10, 4000), (1, 0, 5000)]
    kept = [hold(end_to_end(seen(picked))[0]) for _ in range(3)]
    for _ in range(20):
        end_to_end(seen([(2, 0, 5000), (2, 0, 4000)]))
    assert all(bytes(values) == b"".join(plain(picked))[-len(values) :] for values in kept)


def test_memory_that_lay_idle_for_a_while_is_used_again() -> None:
    """It isn't given back to the kernel between batches, which would have to clear it for each: a fault a page."""
    source = np.ones(8 << 20, np.uint8)
    rows = views_of(np.array([source.ctypes.data]), np.array([len(source)]))
    end_to_end(rows)
    pause, rounds = threading.Event(), 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        pause.wait(0.03)
        end_to_end(rows)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < rounds * len(source) // mmap.PAGESIZE // 4
