"""Rows of any length are copied together as a plain loop would, wherever they lie."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming import ragged
from pipelines.streaming.ragged import Ragged, copy_ragged, offsets_of

SOURCES = [np.random.default_rng(seed).integers(0, 256, 5000, dtype=np.uint8) for seed in range(3)]


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(source, start, length) of each row."""
    longest = draw(st.sampled_from([0, 1, 3, 40, 5000]))
    return draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 5000 - longest), st.integers(0, longest)),
            max_size=40,
        )
    )


def copied(picked: list[tuple[int, int, int]]) -> Ragged:
    addresses = np.array([SOURCES[source].ctypes.data + start for source, start, _ in picked], np.int64)
    lengths = np.array([length for *_, length in picked], np.int64)
    offsets = offsets_of(lengths)
    guarded = np.full(int(offsets[-1]) + 64, 77, np.uint8)
    values = guarded[32 : 32 + int(offsets[-1])]
    copy_ragged(addresses, lengths, offsets, values)
    assert (guarded[:32] == 77).all()
    assert (guarded[32 + len(values) :] == 77).all()
    return Ragged(values, offsets)


@pytest.mark.parametrize("many", [0, 1 << 30])
@given(picked=rows())
def test_both_ways_copy_as_a_loop_does(many: int, picked: list[tuple[int, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "_MANY", many)
        patch.setattr(ragged, "_SHORT", 5000)
        got = copied(picked)
    expected = [SOURCES[source][start : start + length].tobytes() for source, start, length in picked]
    assert [row.tobytes() for row in got] == expected
    assert got.to_arrow().to_pylist() == expected


@given(picked=rows(), data=st.data())
def test_slices_are_views_and_padding_is_empty_rows(picked: list[tuple[int, int, int]], data: st.DataObject) -> None:
    batch = copied(picked)
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
    """Of a sparse file, of which only a few pages are touched."""
    size = (5 << 30) + 3
    source: Any = np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=(size,))
    starts, lengths = [(4 << 30) + 5, 7, size - 9], [3000, 2, 9]
    for start, length in zip(starts, lengths, strict=True):
        source[start : start + length] = np.arange(length) % 251
    for repeat in (1, 100):  # a few rows one by one, many by length
        places = np.tile(np.array(starts), repeat)
        sizes = np.tile(np.array(lengths), repeat)
        offsets = offsets_of(sizes)
        out = np.empty(int(offsets[-1]), np.uint8)
        copy_ragged(places + source.ctypes.data, sizes, offsets, out)
        batch = Ragged(out, offsets)
        for row in range(len(batch)):
            assert batch[row].tolist() == (np.arange(lengths[row % 3]) % 251).tolist()
