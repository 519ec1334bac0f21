"""What must hold of batches that grow, for every ramp, data and world."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.streaming.order import Mixture, Order, Ordering, Ramp
from pipelines.streaming.order.epochs import Epochs, Rest
from storage.errors import ParamsError

Sample = tuple[int, ...]
STEPS = 25
few = settings(max_examples=20)


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    first = draw(st.integers(1, 6))
    factors = sorted(draw(st.sets(st.integers(2, 7), max_size=3)))
    starts = sorted(draw(st.sets(st.integers(1, 15), min_size=len(factors), max_size=len(factors))))
    return Ramp({0: first} | {start: first * factor for start, factor in zip(starts, factors, strict=True)})


@st.composite
def ramped(draw: st.DrawFn) -> Order:
    ramp = draw(ramps())
    lanes = draw(st.sampled_from([n for n in range(1, ramp.smallest + 1) if ramp.smallest % n == 0]))
    return Order(
        draw(st.lists(st.integers(0, 15), min_size=1, max_size=6).filter(any)),
        batch=ramp,
        seed=draw(st.integers(0, 2**63 - 1)),
        ordering=Ordering(lanes=lanes, window=draw(st.integers(1, 64)), keep_lanes=draw(st.booleans())),
    )


def pairs(places: tuple[np.ndarray, ...]) -> list[Sample]:
    return list(zip(*(array.tolist() for array in places), strict=True))


def walk(epochs: Epochs) -> list[tuple[int, int]]:
    """(epoch, step in it) of the first steps, one after the other."""
    places, epoch, step = [], 0, 0
    while len(places) < STEPS:
        places.append((epoch, step))
        epoch, step = (epoch, step + 1) if step + 1 < epochs.steps(epoch) else (epoch + 1, 0)
    return places


@given(ramps(), st.integers(1, 400), st.sampled_from(["keep", "drop", "wrap"]))
def test_every_step_has_its_place_and_its_size(ramp: Ramp, rows: int, rest: Rest) -> None:
    epochs = Epochs(ramp, rows, rest)
    assert epochs.complete == (rest != "drop" or rows >= ramp.largest)
    if not epochs.complete:
        return
    given = 0
    for number, (epoch, step) in enumerate(walk(epochs)):
        assert epochs.place(number) == (epoch, step)
        assert epochs.start(epoch) + step == number
        given = 0 if step == 0 else given
        assert epochs.given(epoch, step) == given
        size = epochs.size(epoch, step)
        left = rows - given
        assert epochs.full(epoch, step) == ramp.size(number)
        assert size == ramp.size(number) if rest == "wrap" else size == min(ramp.size(number), left)
        assert rest != "drop" or size == ramp.size(number)
        alike = epochs.alike(epoch, step)
        assert {epochs.full(epoch, step + more) for more in range(alike)} == {ramp.size(number)}
        assert {epochs.step(epoch, given + sample) for sample in (0, size - 1)} == {step}
        assert epochs.full_steps(epoch) == sum(epochs.size(epoch, at) == epochs.full(epoch, at)
                                               for at in range(epochs.steps(epoch)))  # fmt: skip
        given += size
        if step + 1 == epochs.steps(epoch):
            assert given == rows if rest == "keep" else rows - given < ramp.size(number + 1)
    assert epochs.until(2) == epochs.start(2)
    assert epochs.start(1) <= epochs.until(1.5) <= epochs.start(2)


@given(ramps())
def test_samples_before_a_step_are_those_of_the_batches_before(ramp: Ramp) -> None:
    sizes = [ramp.size(step) for step in range(40)]
    before = [sum(sizes[:step]) for step in range(40)]
    assert ramp.before_each(np.arange(40)).tolist() == [ramp.before(step) for step in range(40)] == before
    assert all(later >= sooner for sooner, later in pairwise(sizes))
    for first in (0, 3, 17):
        for samples in (0, 1, 40, 100):
            full, rest = ramp.steps(first, samples)
            taken = ramp.before(first + full) - ramp.before(first)
            assert (taken + rest, rest < ramp.size(first + full)) == (samples, True)


@few
@given(ramped())
def test_every_sample_comes_once_an_epoch(order: Order) -> None:
    everything = {(shard, row) for shard, rows in enumerate(order.shard_rows) for row in range(rows)}
    for epoch in range(3):
        batches = [pairs(order.batch(epoch, step)) for step in range(order.epochs.steps(epoch))]
        assert [len(batch) for batch in batches] == [order.epochs.size(epoch, step) for step in range(len(batches))]
        assert Counter(sample for batch in batches for sample in batch) == Counter(everything)


@few
@given(ramped(), st.data())
def test_the_ranks_parts_joined_are_the_global_batch(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, order.epochs.ramp.smallest))
    for epoch, step in walk(order.epochs)[:12]:
        parts = [pairs(order.batch(epoch, step, rank, world)) for rank in range(world)]
        assert [sample for part in parts for sample in part] == pairs(order.batch(epoch, step))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1 or step + 1 == order.epochs.steps(epoch)


@few
@given(ramped(), st.data())
def test_a_block_is_its_batches_end_to_end(order: Order, data: st.DataObject) -> None:
    epoch, step = data.draw(st.sampled_from(walk(order.epochs)))
    alike = order.epochs.alike(epoch, step)
    world = data.draw(st.integers(1, order.epochs.ramp.smallest))
    rank, count = data.draw(st.integers(0, world - 1)), data.draw(st.integers(1, alike))
    steps = [pairs(order.batch(epoch, step + more, rank, world)) for more in range(count)]
    assert pairs(order.block(epoch, step, count, rank, world)) == [sample for batch in steps for sample in batch]
    with pytest.raises(IndexError):
        order.block(epoch, step, alike + 1)


@few
@given(ramped(), st.data())
def test_ahead_names_every_shard_once_and_before_it_is_read(order: Order, data: st.DataObject) -> None:
    epoch, step = data.draw(st.sampled_from(walk(order.epochs)))
    world = data.draw(st.integers(1, order.epochs.ramp.smallest))
    rank = data.draw(st.integers(0, world - 1))
    needs = [(at, shard) for at, shards in order.needs(epoch, step, rank, world) for shard in shards.tolist()]
    assert len(needs) == len({shard for _, shard in needs})
    for now in range(step, order.epochs.steps(epoch)):
        known = {shard for at, shard in needs if at <= now}
        assert set(order.batch(epoch, now, rank, world)[0].tolist()) <= known


@few
@given(ramped(), st.integers(0, 3))
def test_lanes_give_what_they_give_without_a_ramp(order: Order, epoch: int) -> None:
    same = {"lanes": order.lanes, "window": order.window, "keep_lanes": order.keep_lanes}
    plain = Order(order.shard_rows, batch=order.epochs.ramp.smallest, seed=order.seed, ordering=Ordering(**same))
    for grown, steady in zip(by_lane(order, epoch), by_lane(plain, epoch), strict=True):
        both = min(len(grown), len(steady))
        assert grown[:both] == steady[:both]


def by_lane(order: Order, epoch: int) -> list[list[Sample]]:
    """What each lane gives to the full batches of an epoch, in order."""
    batches = [pairs(order.batch(epoch, step)) for step in range(order.epochs.full_steps(epoch))]
    parts = [[batch[lane * len(batch) // order.lanes :][: len(batch) // order.lanes] for batch in batches]
             for lane in range(order.lanes)]  # fmt: skip
    return [[sample for part in lane for sample in part] for lane in parts]


def test_a_mixture_may_grow_too() -> None:
    ramp = Ramp({0: 3, 4: 6, 9: 12})
    mixture = Mixture({"a": [9, 4], "b": [7]}, {"a": 2, "b": {0: 1, 9: 5}}, batch=ramp, seed=4)
    seen: Counter[Sample] = Counter()
    for number, (epoch, step) in enumerate(walk(mixture.epochs)):
        batch = pairs(mixture.batch(epoch, step))
        assert len(batch) == ramp.size(number)
        parts = [pairs(mixture.batch(epoch, step, rank, 3)) for rank in range(3)]
        assert [sample for part in parts for sample in part] == batch
        share = mixture.shares(number)["b"]
        assert abs(sum(shard == 2 for shard, _ in batch) - share * len(batch)) <= 1 + 1e-6
        seen.update(batch)
    for shards in ({0: 9, 1: 4}, {2: 7}):
        counts = [seen[shard, row] for shard, rows in shards.items() for row in range(rows)]
        assert max(counts) - min(counts) <= 1


def test_the_batches_themselves() -> None:
    """Pinned: a change of these literals breaks saved states, so raise ORDER_VERSION."""
    ramp = Order([5, 0, 4, 6], batch=Ramp({0: 2, 2: 4, 5: 6}), seed=3, ordering=Ordering(lanes=2))
    assert [ramp.epochs.steps(epoch) for epoch in range(3)] == [5, 3, 3]
    assert [pairs(ramp.batch(0, step)) for step in range(5)] == [
        [(3, 2), (2, 3)],
        [(3, 0), (2, 0)],
        [(3, 4), (0, 0), (0, 3), (2, 2)],
        [(3, 5), (3, 1), (0, 4), (0, 1)],
        [(3, 3), (0, 2), (2, 1)],
    ]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({2: 4}, "batch_ramp begins at step 2: give the size at step 0"),
        ({0: 4, 5: 4}, "4 after 4, but each size must be larger"),
        ({0: 4, 5: 6}, "6 is no multiple of the first size, 4: set it to 8"),
        ({0: 0}, r"stream.batch_size=0: must be at least 1"),
    ],
)
def test_ramps_that_make_no_sense_are_refused(sizes: dict[int, int], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Ramp(sizes)
