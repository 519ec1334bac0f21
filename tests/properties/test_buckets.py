"""What must hold of bucketed batches for every shape of data, lengths, batch, lanes, block and world."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order import Batches, Bucketed, Mixture, Order, Ordering
from pipelines.streaming.order.buckets import Lengths

Batch = list[tuple[int, int]]
few = settings(max_examples=30)


def skewed(seed: int) -> Lengths:
    """Lengths of 1 to some hundred, most of them short, as a function of the place."""

    def lengths(shard: Ints, row: Ints) -> Ints:
        uniform = np.random.default_rng(seed).random(1009)[(shard * 101 + row * 7) % 1009]
        return (1 + 8 / (uniform + 0.02)).astype(np.int64)

    return lengths


@st.composite
def bucketed(draw: st.DrawFn, lanes: int | None = None) -> Bucketed:
    rows = draw(st.lists(st.integers(0, 30), max_size=5))
    batch = draw(st.integers(1, 8))
    chosen = draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0])) if lanes is None else lanes
    seed = draw(st.integers(0, 2**63 - 1))
    order = Order(rows, batch=batch, seed=seed, ordering=Ordering(lanes=chosen, window=draw(st.integers(1, 64))))
    return Bucketed(order, draw(st.integers(2, 40)), seed, skewed(draw(st.integers(0, 9))))


def pairs(places: tuple[Ints, Ints]) -> Batch:
    return list(zip(*(array.tolist() for array in places), strict=True))


def batches(order: Batches, epoch: int, rank: int = 0, world: int = 1) -> list[Batch]:
    return [pairs(order.batch(epoch, step, rank, world)) for step in range(order.steps)]


def flat(batches: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(batches))


def lengths_of(order: Bucketed, batch: Batch) -> list[int]:
    shard, row = np.array(batch, dtype=np.int64).reshape(-1, 2).T
    return order._lengths(shard, row).tolist()


@few
@given(bucketed(), st.integers(0, 3))
def test_a_blocks_batches_share_out_just_the_samples_that_the_order_gave_them(order: Bucketed, epoch: int) -> None:
    """So each comes exactly once an epoch; and each batch takes as much from each lane as before."""
    mine, plain, step = batches(order, epoch), batches(order.order, epoch), 0
    assert [len(batch) for batch in mine] == [order.size(step) for step in range(order.steps)]
    lane = {sample: slot * order.order.lanes // order.batch_size
            for batch in plain[: order.full_steps] for slot, sample in enumerate(batch)}  # fmt: skip
    while step < order.steps:
        start, stop = order.bounds(step)
        assert start == step < stop
        assert sorted(flat(mine[start:stop])) == sorted(flat(plain[start:stop]))
        step = stop
    for batch in mine[: order.full_steps]:
        assert [lane[sample] for sample in batch] == sorted(lane[sample] for sample in batch)
        assert set(Counter(lane[sample] for sample in batch).values()) == {order.batch_size // order.order.lanes}


@few
@given(bucketed(), st.data())
def test_the_ranks_parts_joined_are_the_global_batch_from_any_step_on(order: Bucketed, data: st.DataObject) -> None:
    if not order.steps:
        return
    world = data.draw(st.integers(1, order.batch_size))
    first = data.draw(st.integers(0, order.steps - 1))
    count = data.draw(st.integers(1, order.steps - first))
    parts = []
    for rank in range(world):
        fresh = Bucketed(order.order, order.batches, order.seed, order._lengths)  # nothing known of steps before
        block = pairs(fresh.block(1, first, count, rank, world))
        parts.append([pairs(order.batch(1, step, rank, world)) for step in range(first, first + count)])
        assert block == flat(parts[-1])
    joined = [flat(step) for step in zip(*parts, strict=True)]
    assert joined == batches(order, 1)[first : first + count]


@few
@given(bucketed(lanes=1))
def test_in_one_lane_the_lengths_of_a_blocks_batches_do_not_overlap(order: Bucketed) -> None:
    for start in {order.bounds(step)[0] for step in range(order.full_steps)}:
        lengths = [sorted(lengths_of(order, batch)) for batch in batches(order, 0)[slice(*order.bounds(start))]]
        lengths.sort()
        assert flat(lengths) == sorted(flat(lengths))


@few
@given(bucketed(), st.data())
def test_ahead_names_each_shard_before_its_lengths_are_asked_for(order: Bucketed, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.batch_size))
    rank, step = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, order.steps))
    needs = [(at, shard) for at, shards in order.needs(1, step, rank, world) for shard in shards.tolist()]
    named = {shard for _, shard in needs}
    assert len(named) == len(needs)
    asked: set[int] = set()

    def watched(shard: Ints, row: Ints) -> Ints:
        asked.update(shard.tolist())
        return order._lengths(shard, row)

    fresh = Bucketed(order.order, order.batches, order.seed, watched)
    for now in range(step, order.steps):
        asked.update(shard for shard, _ in pairs(fresh.batch(1, now, rank, world)))
        assert asked <= {shard for at, shard in needs if at <= now}
    assert asked <= named
    everything = [shard for shards in order.order.ahead(1, 0, rank, world) for shard in shards.tolist()]
    assert named <= set(everything)  # none that the rank would not read without buckets


def padding(order: Bucketed, got: list[Batch]) -> float:
    lengths = [lengths_of(order, batch) for batch in got]
    positions = sum(max(batch) * len(batch) for batch in lengths)
    return 1 - sum(map(sum, lengths)) / positions


def test_padding_of_skewed_lengths_is_a_fraction_of_what_it_was_and_lengths_do_not_rise() -> None:
    for lanes in (1, 4):
        plain = Order([300] * 8, batch=16, seed=3, ordering=Ordering(lanes=lanes))
        order = Bucketed(plain, 32, 3, skewed(1))
        assert padding(order, batches(plain, 0)) > 0.6
        assert padding(order, batches(order, 0)) < 0.35
        means = [np.mean(lengths_of(order, batch)) for batch in batches(order, 0)[slice(*order.bounds(70))]]
        assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


def test_of_ranks_that_share_a_lane_none_always_has_the_longest_sample() -> None:
    order = Bucketed(Order([300] * 8, batch=16, seed=3, ordering=Ordering(lanes=1)), 32, 3, skewed(1))
    longest = [[max(lengths_of(order, batch)) for batch in batches(order, 0, rank, 4)] for rank in range(4)]
    has = np.array(longest) == np.max(longest, axis=0)
    has = has[:, has.sum(axis=0) == 1]  # where one of them alone has it
    assert has.shape[1] > 30
    assert (has.mean(axis=1) < 0.4).all()


def test_a_mixtures_batches_keep_their_shares_and_are_the_same_for_any_world() -> None:
    plain = Mixture({"a": [40, 30], "b": [25]}, {"a": {0: 1.0, 20: 3.0}, "b": 1.0}, batch=6, seed=2)
    order = Bucketed(plain, 8, 2, skewed(0))
    mine, before = batches(order, 1), batches(plain, 1)
    assert sorted(flat(mine)) == sorted(flat(before))
    assert [sum(shard == 2 for shard, _ in batch) for batch in mine] == [
        sum(shard == 2 for shard, _ in batch) for batch in before
    ]
    assert mine != before
    parts = zip(*(batches(order, 1, rank, 4) for rank in range(4)), strict=True)
    assert [flat(step) for step in parts] == mine
