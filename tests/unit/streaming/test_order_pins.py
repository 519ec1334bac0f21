"""The order itself, pinned: a change of these literals breaks every saved stream state, so raise ORDER_VERSION."""

import tracemalloc

import numpy as np
import pytest

from pipelines.streaming.order import ORDER_VERSION, Bucketed, Order, Ordering
from pipelines.streaming.order.buckets import BUCKETS_VERSION
from storage.errors import ParamsError


def test_version_is_the_one_that_the_literals_belong_to() -> None:
    assert ORDER_VERSION == 3


def steps(order: Order, epoch: int) -> list[list[tuple[int, int]]]:
    return [list(zip(*(a.tolist() for a in order.batch(epoch, step)), strict=True)) for step in range(order.steps)]


def test_small_order_with_lanes_windows_an_empty_shard_and_a_short_batch() -> None:
    order = Order([5, 0, 9, 7], batch=6, seed=7, ordering=Ordering(lanes=2, window=4))
    assert steps(order, 3) == [
        [(2, 3), (2, 0), (2, 1), (0, 1), (0, 2), (0, 3)],
        [(2, 2), (2, 7), (3, 0), (0, 0), (0, 4), (3, 2)],
        [(2, 8), (2, 5), (2, 6), (3, 1), (3, 4), (3, 3)],
        [(2, 4), (3, 5), (3, 6)],
    ]


def test_small_order_with_kept_lanes() -> None:
    order = Order([5, 0, 9, 7], batch=6, seed=7, ordering=Ordering(lanes=2, window=4, keep_lanes=True))
    assert steps(order, 3) == [
        [(0, 3), (0, 0), (0, 1), (2, 1), (2, 2), (2, 3)],
        [(0, 2), (3, 2), (3, 4), (2, 0), (2, 4), (2, 6)],
        [(3, 3), (3, 0), (3, 1), (2, 5), (2, 8), (2, 7)],
        [(0, 4), (3, 5), (3, 6)],
    ]


def test_small_order_in_buckets() -> None:
    plain = Order([9, 0, 14, 3], batch=4, seed=5, ordering=Ordering(lanes=2, window=8))
    order = Bucketed(plain, 4, 5, lambda shard, row: (7 * shard + 5 * row) % 11)
    assert BUCKETS_VERSION == 1
    shard, row = order.block(3, 0, order.steps)
    assert (100 * shard + row).tolist() == [
        302, 200, 211, 8, 205, 203, 212, 6, 204, 206, 0, 213, 209,
        202, 7, 5, 207, 301, 3, 1, 208, 300, 2, 210, 201, 4,
    ]  # fmt: skip


def test_large_order_with_the_defaults() -> None:
    order = Order([100_000] * 400, batch=8, seed=0)
    assert order.lanes == 8
    assert [a.tolist() for a in order.batch(0, 0)] == [
        [382, 190, 354, 70, 228, 265, 350, 129],
        [8168, 6994, 32899, 14434, 35814, 25480, 32580, 1907],
    ]
    assert [a.tolist() for a in order.batch(1, 1_234_567)] == [
        [317, 277, 260, 67, 301, 45, 64, 288],
        [3887, 91676, 89657, 98529, 12768, 30847, 83727, 37145],
    ]


def test_block_in_one_lane_across_two_windows() -> None:
    order = Order([1000] * 3, batch=4, seed=1)
    assert (order.lanes, order.first_window) == (1, 1000)
    shard, row = order.block(0, 215, 3)
    assert shard.tolist() == [1, 1, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0]
    assert row.tolist() == [141, 116, 369, 471, 851, 976, 824, 756, 762, 865, 486, 766]


def test_windows_as_large_as_may_be() -> None:
    shard, row = Order(
        [1 << 40], batch=4, seed=2, ordering=Ordering(lanes=2, window=1 << 30, first_window=1 << 30)
    ).batch(1, 1 << 35)
    assert (shard.tolist(), row.tolist()) == ([0, 0, 0, 0], [69175368126, 69496808226, 618703313266, 618895542639])


def test_what_the_order_depends_on() -> None:
    assert Order([10], batch=4, seed=1, ordering=Ordering(lanes=2, keep_lanes=True)).settings() == {
        "order version": 3,
        "seed": 1,
        "stream.batch_size": 4,
        "stream.lanes": 2,
        "stream.window": 65_536,
        "stream.keep_lanes": True,
        "first window": 10,
        "shuffle": True,
    }


def test_a_first_batch_touches_one_shard_in_each_lane() -> None:
    for keep_lanes in (False, True):
        order = Order([5000] * 300, batch=64, seed=9, ordering=Ordering(lanes=4, window=20_000, keep_lanes=keep_lanes))
        for epoch in range(5):
            assert len(set(order.batch(epoch, 0)[0].tolist())) == 4
            assert sum(len(shards) for shards in list(order.ahead(epoch, 0))[:1]) == 4


def test_epochs_and_seeds_give_orders_of_their_own() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return Order([64] * 4, batch=32, seed=seed).batch(epoch, 0)[1].tolist()  # type: ignore[no-any-return]

    assert len({tuple(first(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert first(2, 1) == first(2, 1)


def test_neighbours_are_torn_apart() -> None:
    """In a full shuffle of n rows, about one pair in n/2 stays together; and positions don't follow places."""
    order = Order([2500] * 8, batch=100, seed=3, ordering=Ordering(first_window=20_000))
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
        Order([10], batch=6, seed=1, ordering=Ordering(lanes=4))


def test_more_ranks_than_slots_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"5 ranks share stream\.batch_size=4"):
        Order([10], batch=4, seed=1).slots(0, 5)


@pytest.mark.parametrize("window", [0, (1 << 30) + 1])
def test_windows_out_of_bounds_are_refused(window: int) -> None:
    with pytest.raises(ParamsError, match=rf"stream\.window={window}: must be from 1 to 1073741824"):
        Order([10], batch=6, seed=1, ordering=Ordering(window=window))


@pytest.mark.parametrize(("step", "count"), [(-1, 1), (3, 1), (2, 2), (0, 0)])
def test_steps_outside_the_epoch_are_refused(step: int, count: int) -> None:
    with pytest.raises(IndexError, match="epoch of 3 steps"):
        Order([10], batch=4, seed=1).block(0, step, count)
