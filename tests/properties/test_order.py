"""What must hold of the order for every shape of data, batch, lanes, window and world."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.order import Order, Ordering, permutation
from pipelines.streaming.order.lanes import choose_lanes

Rows = list[tuple[int, int]]


@st.composite
def orders(draw: st.DrawFn, keep_lanes: bool | None = None) -> Order:
    """An order over a few small shards, some of them empty."""
    rows = draw(st.lists(st.integers(0, 40), max_size=8))
    keep = draw(st.booleans()) if keep_lanes is None else keep_lanes
    first = draw(st.one_of(st.none(), st.integers(1, 64)))
    batch = draw(st.integers(1, 24))
    lanes = draw(st.sampled_from([None, *(lanes for lanes in range(1, batch + 1) if batch % lanes == 0)]))
    window, seed = draw(st.integers(1, 64)), draw(st.integers(0, 2**63 - 1))
    shuffle = keep or draw(st.booleans())
    return Order(
        rows,
        batch=batch,
        seed=seed,
        ordering=Ordering(lanes=lanes, window=window, first_window=first, keep_lanes=keep, shuffle=shuffle),
    )


def pairs(places: tuple[np.ndarray, np.ndarray]) -> Rows:
    assert all(array.dtype == np.int64 for array in places)
    return list(zip(*(array.tolist() for array in places), strict=True))


def batches(order: Order, epoch: int, rank: int = 0, world: int = 1) -> list[Rows]:
    return [pairs(order.batch(epoch, step, rank, world)) for step in range(order.steps)]


@given(orders(), st.integers(0, 5))
def test_every_sample_comes_exactly_once_in_an_epoch(order: Order, epoch: int) -> None:
    got = [sample for batch in batches(order, epoch) for sample in batch]
    assert sorted(got) == [(shard, row) for shard, rows in enumerate(order.shard_rows) for row in range(rows)]


@given(orders(), st.integers(0, 5))
def test_shards_laid_out_in_two_threads_lie_as_in_one(order: Order, epoch: int) -> None:
    """So orders of very many shards are those that the other properties are about."""
    alone = batches(order, epoch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ALONE", 2)
        order._lanes.layout._latest = None
        assert batches(order, epoch) == alone


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
    plain = Order(order.shard_rows, batch=order.batch_size, seed=1, ordering=Ordering(shuffle=False))
    got = [sample for batch in batches(plain, 3) for sample in batch]
    assert got == sorted(got)


@given(orders())
def test_a_batch_takes_as_much_from_each_lane(order: Order) -> None:
    if order.shuffle and order.full_steps:
        lanes = [lane_of(order, 0, sample) for sample in pairs(order.batch(0, 0))]
        assert lanes == sorted(np.tile(np.arange(order.lanes), order.batch_size // order.lanes).tolist())


@given(orders(keep_lanes=True), st.integers(1, 5))
def test_kept_lanes_hold_the_same_samples_in_all_epochs(order: Order, epoch: int) -> None:
    for sample in {sample for batch in batches(order, 0) for sample in batch}:
        assert lane_of(order, epoch, sample) == lane_of(order, 0, sample)


def lane_of(order: Order, epoch: int, sample: tuple[int, int]) -> int:
    """The lane among whose virtual rows a sample lies."""
    view = order._lanes.layout.epoch(epoch)
    shard, row = sample
    starts = np.append(0, view.ends[:-1])
    piece = np.flatnonzero((view.shards == shard) & (starts <= row + view.offsets) & (row + view.offsets < view.ends))
    virtual = row + view.offsets[piece[0]]
    bounds = np.arange(1, order.lanes) * order.rows // order.lanes
    return int(np.searchsorted(bounds, virtual, side="right"))


@given(orders(), st.data())
def test_samples_by_number_are_the_batches_of_one_of_each_lane(order: Order, data: st.DataObject) -> None:
    narrow = Order(
        order.shard_rows, batch=order.lanes, seed=order.seed, ordering=Ordering(lanes=order.lanes, window=order.window)
    )
    everything = [sample for batch in batches(narrow, 1) for sample in batch]
    numbers = data.draw(st.permutations(range(order.rows)))
    assert pairs(narrow._lanes.samples(1, np.array(numbers, dtype=np.int64))) == [everything[n] for n in numbers]


@given(orders(), st.data())
def test_ahead_names_each_shard_once_and_before_it_is_read(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.batch_size))
    rank, step = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, order.steps))
    needs = list(order.needs(1, step, rank, world))
    assert [shards.tolist() for shards in order.ahead(1, step, rank, world)] == [arr.tolist() for _, arr in needs]
    named = [shard for _, shards in needs for shard in shards.tolist()]
    assert len(named) == len(set(named))
    known: set[int] = set()
    needs.append((order.steps, np.empty(0)))
    for now in range(step, order.steps):
        while needs[0][0] <= now:
            known.update(needs.pop(0)[1].tolist())
        assert {shard for shard, _ in pairs(order.batch(1, now, rank, world))} <= known
    if step == 0 and world == 1:
        assert known == {shard for shard, rows in enumerate(order.shard_rows) if rows}


@given(orders(), st.data())
def test_ahead_without_shuffling_names_just_what_is_read(order: Order, data: st.DataObject) -> None:
    plain = Order(order.shard_rows, batch=order.batch_size, seed=1, ordering=Ordering(shuffle=False))
    step = data.draw(st.integers(0, plain.steps))
    read = [shard for now in range(step, plain.steps) for shard, _ in pairs(plain.batch(0, now))]
    assert [shard for shards in plain.ahead(0, step) for shard in shards.tolist()] == list(dict.fromkeys(read))


@given(orders(), st.data())
def test_reads_are_the_rows_that_ranks_read(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.batch_size))
    rows = np.zeros(len(order.shard_rows))
    for rank in range(world):
        shards, read = order.reads(2, rank, world)
        assert len(set(shards.tolist())) == len(shards)
        rows[shards] += read
        full = order.rows * (slots_of(order, rank, world) / order.batch_size)
        assert abs(read.sum() - full) <= order.lanes  # lanes differ by a row
    assert np.allclose(rows, order.shard_rows)


def slots_of(order: Order, rank: int, world: int) -> int:
    slots = order.slots(rank, world)
    return slots.stop - slots.start


@given(orders(), st.data())
def test_the_reads_of_lanes_of_ones_own_are_exact(order: Order, data: st.DataObject) -> None:
    """With the last batch full and a lane or several to each rank."""
    if order.full_steps and order.steps == order.full_steps:
        world = data.draw(st.sampled_from([n for n in range(1, order.lanes + 1) if order.lanes % n == 0]))
        rank = data.draw(st.integers(0, world - 1))
        shards, rows = order.reads(0, rank, world)
        read = np.bincount(order.block(0, 0, order.steps, rank, world)[0], minlength=len(order.shard_rows))
        assert np.allclose(read[shards], rows)
        assert read.sum() == round(rows.sum())


@given(st.integers(1, 1000), st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 64))
def test_chosen_lanes_divide_the_batch(batch: int, rows: int, window: int, limit: int) -> None:
    lanes = choose_lanes(batch, rows, window, limit)
    assert batch % lanes == 0
    assert 1 <= lanes <= limit
    assert lanes == 1 or lanes * window * 16 <= rows


@given(orders(), st.integers(0, 9))
def test_windows_start_small_and_double(order: Order, epoch: int) -> None:
    windows = order._lanes.layout.epoch(epoch).windows
    found = [windows.find(position) for position in range(int(windows.lane_rows.max()))]
    rows = [end - start for _, start, end in dict.fromkeys(found)]
    assert [start for _, start, _ in dict.fromkeys(found)] == list(np.cumsum([0, *rows[:-1]]))[: len(rows)]
    for before, now in itertools.pairwise(rows[:-1]):
        assert now == min(2 * before, order.window)
    if len(rows) > 1:
        assert order.first_window // 2 <= rows[0] <= order.first_window
        regular = [min(rows[-2] << doublings, order.window) for doublings in (1, 2)]
        assert regular[0] - order.lanes < rows[-1] <= sum(regular)
    for lane in range(order.lanes):
        position = np.arange(windows.lane_rows[lane])
        index, start, size, longest = windows.find_all(position, np.full(len(position), lane))
        expected = [found[at] for at in position]
        assert list(zip(index.tolist(), start.tolist(), strict=True)) == [place[:2] for place in expected]
        assert longest.tolist() == [end - start for _, start, end in expected]
        assert size.tolist() == [windows.rows(place[0], np.array([lane]))[0] for place in expected]
