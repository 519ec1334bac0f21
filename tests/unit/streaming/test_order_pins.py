"""The order itself, pinned: a change of these literals breaks every saved stream state, so raise ORDER_VERSION."""

import tracemalloc

import numpy as np
import pytest

from pipelines.streaming.order import ORDER_VERSION, Order
from storage.errors import ParamsError


def test_version_is_the_one_that_the_literals_belong_to() -> None:
    assert ORDER_VERSION == 1


def test_small_order_with_lanes_windows_an_empty_shard_and_a_short_batch() -> None:
    order = Order([5, 0, 9, 7], batch=6, seed=7, lanes=2, window=4)
    assert [list(zip(*(a.tolist() for a in order.batch(3, step)), strict=True)) for step in range(order.steps)] == [
        [(3, 1), (3, 3), (3, 2), (2, 3), (2, 4), (2, 5)],
        [(3, 0), (3, 6), (2, 0), (2, 6), (0, 0), (0, 2)],
        [(2, 2), (2, 1), (3, 5), (0, 1), (0, 4), (2, 7)],
        [(3, 4), (0, 3), (2, 8)],
    ]


def test_large_order_with_the_defaults() -> None:
    order = Order([100_000] * 40, batch=8, seed=0)
    assert order.lanes == 8
    assert [a.tolist() for a in order.batch(0, 0)] == [
        [25, 21, 7, 8, 34, 14, 9, 33],
        [50491, 45579, 23694, 50427, 14730, 8772, 25110, 63676],
    ]
    assert [a.tolist() for a in order.batch(1, 123_456)] == [
        [11, 36, 23, 31, 2, 17, 6, 26],
        [62079, 91780, 38957, 42903, 53896, 43349, 62000, 43938],
    ]


def test_block_in_one_lane() -> None:
    shard, row = Order([1000] * 3, batch=4, seed=1).block(0, 700, 3)
    assert shard.tolist() == [0, 1, 2, 1, 0, 0, 2, 0, 0, 2, 0, 0]
    assert row.tolist() == [675, 8, 686, 425, 786, 977, 382, 316, 5, 316, 429, 222]


def test_epochs_and_seeds_give_orders_of_their_own() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return Order([64] * 4, batch=32, seed=seed).batch(epoch, 0)[1].tolist()  # type: ignore[no-any-return]

    assert len({tuple(first(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert first(2, 1) == first(2, 1)


def test_neighbours_are_torn_apart() -> None:
    """In a full shuffle of n rows, about one pair in n/2 stays together; and positions don't follow places."""
    order = Order([2500] * 8, batch=100, seed=3)
    shard, row = order.block(0, 0, order.steps)
    place = shard * 2500 + row
    assert (np.abs(np.diff(place)) == 1).sum() < 12
    assert abs(np.corrcoef(place, np.arange(len(place)))[0, 1]) < 0.03


def test_no_memory_goes_by_samples() -> None:
    tracemalloc.start()
    try:
        order = Order(np.full(10_000, 10**8), batch=256, seed=1)  # 10^12 samples
        order.batch(7, order.steps // 2)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_lanes_that_do_not_divide_the_batch_are_refused_with_some_that_do() -> None:
    with pytest.raises(ParamsError, match=r"stream\.lanes=4 .*stream\.batch_size=6.* Set stream\.lanes to 3"):
        Order([10], batch=6, seed=1, lanes=4)


def test_more_ranks_than_slots_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"5 ranks share stream\.batch_size=4"):
        Order([10], batch=4, seed=1).slots(0, 5)


@pytest.mark.parametrize(("step", "count"), [(-1, 1), (3, 1), (2, 2), (0, 0)])
def test_steps_outside_the_epoch_are_refused(step: int, count: int) -> None:
    with pytest.raises(IndexError, match="epoch of 3 steps"):
        Order([10], batch=4, seed=1).block(0, step, count)
