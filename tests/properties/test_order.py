"""What must hold of the order for every shape of data, batch, lanes, window and world."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.order import Order, choose_lanes, permute

Rows = list[tuple[int, int]]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """An order over a few small shards, some of them empty."""
    rows = draw(st.lists(st.integers(0, 40), max_size=8))
    batch = draw(st.integers(1, 24))
    lanes = draw(st.sampled_from([None, *(lanes for lanes in range(1, batch + 1) if batch % lanes == 0)]))
    window, seed = draw(st.integers(1, 64)), draw(st.integers(0, 2**63 - 1))
    return Order(rows, batch=batch, seed=seed, lanes=lanes, window=window, shuffle=draw(st.booleans()))


def pairs(places: tuple[np.ndarray, np.ndarray]) -> Rows:
    assert all(array.dtype == np.int64 for array in places)
    return list(zip(*(array.tolist() for array in places), strict=True))


def batches(order: Order, epoch: int, rank: int = 0, world: int = 1) -> list[Rows]:
    return [pairs(order.batch(epoch, step, rank, world)) for step in range(order.steps)]


@given(orders(), st.integers(0, 5))
def test_every_sample_comes_exactly_once_in_an_epoch(order: Order, epoch: int) -> None:
    got = [sample for batch in batches(order, epoch) for sample in batch]
    assert sorted(got) == [(shard, row) for shard, rows in enumerate(order.shard_rows) for row in range(rows)]


@given(orders())
def test_only_the_last_batch_is_short(order: Order) -> None:
    sizes = [len(batch) for batch in batches(order, 0)]
    assert sizes == [order.size(step) for step in range(order.steps)]
    assert all(size == order.batch_size for size in sizes[:-1])
    assert sum(sizes) == order.rows


@given(orders(), st.data())
def test_the_ranks_parts_joined_are_the_global_batch(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.batch_size))
    parts = [batches(order, 1, rank, world) for rank in range(world)]
    joined = [[sample for part in step for sample in part] for step in zip(*parts, strict=True)]
    assert joined == batches(order, 1)


@given(orders(), st.data())
def test_ranks_of_a_full_batch_differ_by_at_most_one_sample_and_none_is_idle(order: Order, data: st.DataObject) -> None:
    world, batch = data.draw(st.integers(1, order.batch_size)), order.batch_size
    for rank in range(world):
        slots = order.slots(rank, world)
        assert list(range(batch))[slots] == [slot for slot in range(batch) if slot * world // batch == rank]
        assert batch // world <= slots.stop - slots.start <= -(-batch // world)


@given(orders(), st.data())
def test_a_rank_never_owns_more_of_a_short_batch_than_of_a_full_one(order: Order, data: st.DataObject) -> None:
    world, size = data.draw(st.integers(1, order.batch_size)), data.draw(st.integers(0, order.batch_size))
    for rank in range(world):
        full, short = order.slots(rank, world), order.slots(rank, world, size)
        assert 0 <= short.stop - short.start <= full.stop - full.start


@given(orders(), st.data())
def test_a_block_is_its_batches_end_to_end(order: Order, data: st.DataObject) -> None:
    if order.steps:
        first = data.draw(st.integers(0, order.steps - 1))
        count = data.draw(st.integers(1, order.steps - first))
        world = data.draw(st.integers(1, order.batch_size))
        rank = data.draw(st.integers(0, world - 1))
        expected = [sample for batch in batches(order, 2, rank, world)[first : first + count] for sample in batch]
        assert pairs(order.block(2, first, count, rank, world)) == expected


@given(orders())
def test_without_shuffling_rows_come_as_they_are_stored(order: Order) -> None:
    plain = Order(order.shard_rows, batch=order.batch_size, seed=1, shuffle=False)
    got = [sample for batch in batches(plain, 3) for sample in batch]
    assert got == sorted(got)


@given(orders())
def test_a_batch_takes_as_much_from_each_lane(order: Order) -> None:
    if order.shuffle and order.full_steps:
        view = order._epoch(0)
        starts = dict(zip(view.shards.tolist(), view.starts.tolist(), strict=True))
        rows = [(starts[shard] + row - view.rotation) % order.rows for shard, row in pairs(order.batch(0, 0))]
        bounds = np.arange(1, order.lanes) * order.rows // order.lanes
        lanes = np.searchsorted(bounds, rows, side="right")
        assert lanes.tolist() == sorted(np.tile(np.arange(order.lanes), order.batch_size // order.lanes).tolist())


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    index = np.arange(size, dtype=np.uint64)
    permuted = permute(index, np.full(size, size, np.uint64), np.full(size, key, np.uint64))
    assert np.array_equal(np.sort(permuted), index)


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1))
def test_permute_stays_inside_sizes_that_no_array_has(size: int, key: int) -> None:
    index = np.unique(np.array([0, size // 3, size // 2, size - 1], dtype=np.uint64))
    permuted = permute(index, np.full(len(index), size, np.uint64), np.full(len(index), key, np.uint64))
    assert (permuted < size).all()
    assert len(np.unique(permuted)) == len(index)


@given(st.integers(1, 1000), st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 64))
def test_chosen_lanes_divide_the_batch(batch: int, rows: int, window: int, limit: int) -> None:
    lanes = choose_lanes(batch, rows, window, limit)
    assert batch % lanes == 0
    assert 1 <= lanes <= limit
    assert lanes == 1 or lanes * window <= rows


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_a_small_window_comes_about_equally_often(size: int) -> None:
    keys = np.arange(50_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    columns = [
        permute(np.full(len(keys), i, np.uint64), np.full(len(keys), size, np.uint64), keys) for i in range(size)
    ]
    seen, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    assert len(seen) == math.factorial(size)
    assert np.abs(counts * len(seen) / len(keys) - 1).max() < 0.25
