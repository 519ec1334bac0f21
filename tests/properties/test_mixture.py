"""What must hold of a mixture for every number of datasets, weights, batch and world."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.streaming.order import Mixture, Ordering
from pipelines.streaming.order.epochs import Epochs
from pipelines.streaming.order.mixing.quotas import Quotas
from storage.errors import DataError, ParamsError

Sample = tuple[int, int, int]

weight = st.one_of(st.integers(1, 9), st.floats(0.001, 10), st.just(1e-9))
changing = st.dictionaries(st.integers(0, 30), st.one_of(st.just(0), weight), min_size=1, max_size=4)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """A mixture of a few small datasets; the first one always has a weight."""
    names = [f"set-{place}" for place in range(draw(st.integers(1, 5)))]
    datasets = {name: draw(st.lists(st.integers(0, 15), min_size=1, max_size=4).filter(any)) for name in names}
    weights = {name: draw(st.one_of(weight, changing.filter(lambda bends: any(bends.values())))) for name in names[1:]}
    return Mixture(
        datasets,
        {names[0]: draw(weight), **weights},
        batch=draw(st.integers(1, 24)),
        seed=draw(st.integers(0, 2**63 - 1)),
        steps=draw(st.one_of(st.none(), st.integers(1, 20))),
    )


def samples(mixture: Mixture, places: tuple[np.ndarray, np.ndarray]) -> list[Sample]:
    """(dataset, its shard, row) of each."""
    assert all(array.dtype == np.int64 for array in places)
    shard, row = places
    dataset = mixture.datasets_of(shard)
    return list(zip(dataset.tolist(), (shard - mixture.firsts[dataset]).tolist(), row.tolist(), strict=True))


def batches(mixture: Mixture, steps: int, rank: int = 0, world: int = 1) -> list[list[Sample]]:
    """The first global steps."""
    return [samples(mixture, mixture.batch(*divmod(step, mixture.steps), rank, world)) for step in range(steps)]


@given(mixtures())
def test_each_dataset_goes_through_its_epochs_with_every_sample_once_in_each(mixture: Mixture) -> None:
    got = [sample for batch in batches(mixture, 12) for sample in batch]
    for index, order in enumerate(mixture.parts):
        own = [(shard, row) for dataset, shard, row in got if dataset == index]
        everything = {(shard, row) for shard, rows in enumerate(order.shard_rows) for row in range(rows)}
        counts = Counter(own)
        whole, part = divmod(len(own), order.rows)
        assert all(whole <= counts[sample] <= whole + 1 for sample in everything)
        assert set(counts) <= everything
        assert sum(counts[sample] == whole + 1 for sample in everything) == part


@given(mixtures())
def test_counts_never_drift_from_the_weights(mixture: Mixture) -> None:
    """By weights that are constant, whose sums are told without stairs."""
    weights = list(mixture.schedule.values())[-1]
    shares = [weight / sum(weights) for weight in weights]
    quotas = Quotas({0: weights}, mixture.batch_size)
    given = quotas.given(np.arange(200))
    assert (given.sum(axis=1) == np.arange(200) * mixture.batch_size).all()
    assert (np.diff(given, axis=0) >= 0).all()
    limit = max(1, (len(shares) - 1).bit_length() / 2) + 200 * mixture.batch_size / 2**20
    for step, counts in enumerate(given.tolist()):
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - share * step * mixture.batch_size) <= limit


@given(mixtures(), st.integers(0, 60))
def test_counts_follow_weights_that_change(mixture: Mixture, step: int) -> None:
    """The sum over the steps of the weights, each taken at its step."""
    due = [Fraction(0) for _ in mixture.names]
    bends = list(mixture.schedule)
    for now in range(step):
        before = max(bend for bend in bends if bend <= now)
        after = min((bend for bend in bends if bend > now), default=before)
        way = Fraction(now - before, after - before) if after > before else Fraction(0)
        ends = [[value / sum(mixture.schedule[bend]) for value in mixture.schedule[bend]] for bend in (before, after)]
        for place, (low, high) in enumerate(zip(*ends, strict=True)):
            due[place] += mixture.batch_size * (low + (high - low) * way)
    given = mixture._quotas.given([step])[0].tolist()
    assert sum(given) == step * mixture.batch_size
    limit = max(1, (len(due) - 1).bit_length() / 2) + 0.01
    assert all(abs(count - wanted) <= limit for count, wanted in zip(given, due, strict=True))


@given(st.integers(1, 9), st.integers(0, 50))
def test_long_ramps_are_climbed_in_stairs_and_never_back(batch: int, step: int) -> None:
    quotas = Quotas({0: [Fraction(1), Fraction(0)], 10**6: [Fraction(0), Fraction(1)]}, batch)
    steps = np.arange(step * 19_000, step * 19_000 + 1000)
    given = quotas.given(steps)
    assert (np.diff(given, axis=0) >= 0).all()
    assert (given.sum(axis=1) == steps * batch).all()
    exact = batch * steps.astype(float) ** 2 / 2e6
    climbed = np.minimum(exact, given[:, 1].max() + 1)
    assert np.abs(given[:, 1] - climbed).max() <= 1 + batch * 10**6 / 256**2


@given(mixtures(), st.data())
def test_the_ranks_parts_joined_are_the_global_batch(mixture: Mixture, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, mixture.batch_size))
    parts = [batches(mixture, 2, rank, world) for rank in range(world)]
    joined = [[sample for part in step for sample in part] for step in zip(*parts, strict=True)]
    assert joined == batches(mixture, 2)


@given(mixtures(), st.data())
def test_each_rank_gets_its_share_of_each_dataset(mixture: Mixture, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, mixture.batch_size))
    epoch, step = divmod(data.draw(st.integers(0, 5)), mixture.steps)
    whole = mixture.datasets_of(mixture.batch(epoch, step)[0])
    counts = Counter(whole.tolist())
    for rank in range(world):
        own = Counter(whole[mixture.slots(rank, world)].tolist())
        for dataset, count in counts.items():
            assert abs(own[dataset] - count * sum(own.values()) / mixture.batch_size) <= 2


@given(mixtures(), st.data())
def test_a_block_is_its_batches_end_to_end_from_any_step(mixture: Mixture, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, mixture.steps - 1))
    count = data.draw(st.integers(1, min(20, mixture.steps - first)))
    world = data.draw(st.integers(1, mixture.batch_size))
    rank, epoch = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, 3))
    steps = [samples(mixture, mixture.batch(epoch, first + offset, rank, world)) for offset in range(count)]
    block = samples(mixture, mixture.block(epoch, first, count, rank, world))
    assert block == [sample for step in steps for sample in step]


@given(mixtures(), st.data())
def test_ahead_names_shards_before_they_are_read(mixture: Mixture, data: st.DataObject) -> None:
    mixture.epochs = Epochs(mixture.epochs.ramp, mixture.rows, "wrap", min(mixture.steps, 12))
    epoch, step = data.draw(st.integers(0, 2)), data.draw(st.integers(0, mixture.steps - 1))
    needs = list(mixture.needs(epoch, step))
    assert [at for at, _ in needs] == sorted(at for at, _ in needs)
    assert [shards.tolist() for shards in mixture.ahead(epoch, step)] == [shards.tolist() for _, shards in needs]
    for now in range(step, mixture.steps):
        known = {shard for at, shards in needs if at <= now for shard in shards.tolist()}
        assert set(mixture.batch(epoch, now)[0].tolist()) <= known


def test_the_mixture_itself() -> None:
    """Pinned: a change of these literals breaks saved states, so raise ORDER_VERSION."""
    weights = {"prose": 2, "code": {2: 1, 6: 5}}
    mixture = Mixture({"prose": [4, 3], "code": [2, 0, 6]}, weights, batch=5, seed=3, steps=4)
    assert mixture._quotas.given(np.arange(9)).tolist() == [
        [0, 0],
        [3, 2],
        [7, 3],
        [10, 5],
        [13, 7],
        [15, 10],
        [17, 13],
        [19, 16],
        [20, 20],
    ]
    assert batches(mixture, 3) == [
        [(1, 2, 1), (0, 0, 0), (0, 1, 1), (1, 2, 0), (0, 1, 2)],
        [(0, 0, 3), (1, 2, 4), (0, 1, 0), (0, 0, 1), (0, 0, 2)],
        [(1, 2, 5), (0, 0, 1), (1, 2, 3), (0, 1, 1), (0, 0, 0)],
    ]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "weights for a, but the datasets are a, b"),
        ({"a": 1, "b": -1}, r"stream\.mixture\.b\.weight=-1"),
        ({"a": 1, "b": float("nan")}, r"stream\.mixture\.b\.weight=nan"),
        ({"a": 1, "b": {3: 0}}, r"stream\.mixture\.b\.weight=\{3: 0\}: must be finite, not negative, and not always 0"),
        ({"a": 1, "b": {-3: 1}}, "steps start at 0"),
        ({"a": {0: 1, 5: 0}, "b": {0: 1, 5: 0}}, "all weights are 0 at step 5"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Mixture({"a": [4], "b": [4]}, weights, batch=4, seed=1)


def test_an_empty_dataset_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'b'"):
        Mixture({"a": [4], "b": [0]}, {"a": 1, "b": 1}, batch=4, seed=1)


def test_a_window_out_of_bounds_is_refused_by_its_name() -> None:
    with pytest.raises(ParamsError, match=r"stream\.window=0: must be from 1"):
        Mixture({"a": [4]}, {"a": 1}, batch=4, seed=1, ordering=Ordering(window=0))


def test_a_mixture_is_told_by_its_settings() -> None:
    settings = Mixture({"a": [4], "b": [9]}, {"a": 1, "b": {0: 1, 8: 0.5}}, batch=4, seed=1).settings()
    assert settings["stream.mixture"] == {"a": {"0": 1.0, "8": 1.0}, "b": {"0": 1.0, "8": 0.5}}
    assert (settings["steps of an epoch"], settings["b: first window"]) == (3, 9)


def test_where_a_small_dataset_is_needed_again_is_found_from_the_time_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone through very often: a search of the whole epoch each time would hold up the threads that fetch."""
    mixture = Mixture({"large": [20_000], "small": [10]}, {"large": 0.9, "small": 0.1}, batch=64, seed=1)
    asked, given = [], mixture._quotas.given
    monkeypatch.setattr(mixture._quotas, "given", lambda step: asked.append(step) or given(step))
    needs = list(mixture.needs(0, 0))
    assert len(needs) > 100
    assert len(asked) < 4 * len(needs)  # steps are 1.6 apart; in the epoch's 313, a search takes 8 and more
