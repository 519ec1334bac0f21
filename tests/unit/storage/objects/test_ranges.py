"""Ranges of objects: all bytes once, and more of them at once where a store's connections are slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.objects.ranges import PART, Cutter

MB = 1e6


def after(*rates: float) -> Cutter:
    """A cutter that has seen ranges of 8 MiB come at so many bytes a second."""
    cutter = Cutter()
    for rate in rates:
        cutter.note(8 * PART, 8 * PART / rate)
    return cutter


def shape(cutter: Cutter, mib: int) -> tuple[int, int]:
    """How many ranges an object of so many MiB has, and how many at once."""
    with cutter.cut(mib * PART) as (ranges, at_once):
        return len(ranges), at_once


@given(st.integers(0, 3 << 30), st.lists(st.floats(1e3, 1e10), max_size=40))
def test_ranges_are_whole_parts_and_cover_the_object_once(nbytes: int, rates: list[float]) -> None:
    cutter = after(*rates)
    with cutter.cut(nbytes) as alone, cutter.cut(nbytes) as beside:
        for ranges, at_once in (alone, beside):
            assert [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), nbytes]
            assert all(start % PART == 0 and start < stop for start, stop in ranges)
            assert 1 <= at_once <= 16
            assert len(ranges) <= max(16, -(-nbytes // (16 * PART)))


def test_slow_connections_are_many_and_quick_ones_few() -> None:
    assert shape(after(), 64) == (8, 8)
    assert shape(after(60 * MB, 90 * MB), 64) == (16, 16)
    assert shape(after(60 * MB, 300 * MB), 64) == (16, 16)  # one may slip through a limit
    assert shape(after(60 * MB, 300 * MB, 200 * MB), 64) == (4, 4)  # which holds for all others
    assert shape(after(60 * MB), 1024) == (64, 16)
    assert shape(after(300 * MB), 1024) == (13, 4)
    assert shape(after(60 * MB), 3) == (1, 16)


def test_beside_others_a_quick_connection_is_enough() -> None:
    """And an object that ended in an error is beside none any more."""
    near, far = after(300 * MB), after(60 * MB)
    with near.cut(PART), far.cut(PART):
        assert shape(near, 64) == (1, 1)
        assert shape(far, 64) == (16, 16)
    assert shape(near, 64) == (4, 4)
    with pytest.raises(OSError, match="broken"), near.cut(PART):
        raise OSError("broken")
    assert shape(near, 64) == (4, 4)


def test_what_was_quick_long_ago_does_not_count() -> None:
    assert after(300 * MB, 300 * MB, *[60 * MB] * 14).far is False
    assert after(300 * MB, 300 * MB, *[60 * MB] * 15).far is True


def test_what_does_not_learn_goes_on_as_it_began() -> None:
    """Ranges of drivers that give a range as a whole or not at all stay small."""
    for rate in (60 * MB, 300 * MB):
        cutter = Cutter(learns=False)
        cutter.note(8 * PART, 8 * PART / rate)
        assert not cutter.far
        assert shape(cutter, 64) == (8, 8)
        with cutter.cut(PART):
            assert shape(cutter, 1024) == (64, 8)


def test_short_ranges_say_nothing() -> None:
    cutter = Cutter()
    cutter.note(PART - 1, 1.0)
    assert not cutter.far
    assert shape(cutter, 64) == (8, 8)
