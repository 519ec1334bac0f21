"""That `permute` permutes, at any size, and draws from the permutations evenly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.order import permutation
from pipelines.streaming.order.permutation import LIMIT, permute, shuffled, spread

keys = st.integers(0, 2**64 - 1)


def permuted(size: int, key: int) -> np.ndarray:
    index = np.arange(size, dtype=np.uint32)
    return permute(index, np.array([size], dtype=np.uint32), np.array([key], dtype=np.uint64))


@given(st.integers(1, 6000), keys)
def test_each_value_comes_once(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permuted(size, key)), np.arange(size))


@given(st.integers(1, LIMIT), keys)
def test_values_stay_inside_sizes_that_no_array_has(size: int, key: int) -> None:
    index = np.unique(np.array([0, size // 3, size // 2, size - 1], dtype=np.uint32))
    values = permute(index, np.full(len(index), size, np.uint32), np.full(len(index), key, np.uint64))
    assert (values < size).all()
    assert len(np.unique(values)) == len(index)


@given(st.lists(st.tuples(st.one_of(st.integers(1, 12), st.integers(4090, 4100)), keys), min_size=1, max_size=20))
def test_sizes_and_keys_may_differ_from_place_to_place(places: list[tuple[int, int]]) -> None:
    size = np.array([size for size, _ in places], dtype=np.uint32)
    index = size // 2
    values = permute(index, size, np.array([key for _, key in places], dtype=np.uint64))
    assert values.tolist() == [permuted(*place)[at] for place, at in zip(places, index, strict=True)]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_permutation_of_a_few_values_comes_equally_often(size: int) -> None:
    keys, index = np.arange(60_000, dtype=np.uint64), np.arange(size, dtype=np.uint32)
    values = permute(np.tile(index, len(keys)), np.array([size], dtype=np.uint32), np.repeat(keys, size))
    codes = values.reshape(-1, size) @ size ** np.arange(size)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert surprise(counts) < 4


@pytest.mark.parametrize("size", [9, 64, 65, 100, 300, 1000, 4096, 20_000])
def test_neighbours_land_at_any_distance(size: int) -> None:
    """Pairs of indices that share a half of the Feistel network are what too few rounds would leave related."""
    side = 1 << (size - 1).bit_length() // 2
    keys, index = (
        np.arange((1_000_000 if size > 64 else 250_000) // size, dtype=np.uint64),
        np.arange(size, dtype=np.uint32),
    )
    every = [permute(index, np.array([size], dtype=np.uint32), key[None]) for key in keys] if size > 1000 else None
    values = permute(np.tile(index, len(keys)), np.array([size], dtype=np.uint32), np.repeat(keys, size))
    table = values.reshape(-1, size).astype(np.int64)
    assert every is None or np.array_equal(table, every)
    for stride in (1, side):
        distances = (table[:, stride:] - table[:, :-stride]) % size
        assert surprise(np.bincount(distances.reshape(-1), minlength=size)[1:]) < 4.5


def test_an_index_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside its range"):
        permute(np.array([3, 100], dtype=np.uint32), np.array([100], dtype=np.uint32), np.array([1], dtype=np.uint64))


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=6), keys)
def test_groups_are_each_permuted_on_their_own_in_one_thread_or_two(sizes: list[int], key: int) -> None:
    keys = spread(np.arange(len(sizes), dtype=np.uint64), np.uint64(key)).tolist()
    expected = [sum(sizes[:group]) + permuted(sizes[group], keys[group]) for group in range(len(sizes))]
    assert np.array_equal(shuffled(np.array(sizes), key), np.concatenate(expected))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ALONE", 2)
        patch.setattr(permutation, "_TOGETHER", 100)
        assert np.array_equal(shuffled(np.array(sizes), key), np.concatenate(expected))


def surprise(counts: np.ndarray) -> float:
    """How far counts of equally likely outcomes are from equal, in standard deviations (Wilson and Hilferty)."""
    freedom, mean = len(counts) - 1, counts.mean()
    ratio = ((counts - mean) ** 2 / mean).sum() / freedom
    return float((ratio ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)))
