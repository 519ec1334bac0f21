"""The admission policy: its promises for any history, and that Redis' script decides as it does."""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.servers import Redis, redis_server

from storage.cache.hot.breaker import Breaker
from storage.cache.hot.index import Index
from storage.cache.policy import Policy, decide, ring_of

pytestmark = pytest.mark.xdist_group("redis")

PINNED, RING = 30, 25
SIZES = st.sampled_from([0, 5, 7, 8, 9, 12, 25, 26, 31])


class Caching(RuleBasedStateMachine):
    """A policy with a clock that runs; keys have the size that they had first."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy(PINNED + RING, RING, idle=10.0)
        self.now = 0.0
        self.used: dict[str, float] = {}
        self.sizes: dict[str, int] = {}

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from("abcdefgh"), size=SIZES)
    def admit(self, key: str, size: int) -> None:
        size = self.sizes.setdefault(key, size)
        before = dict(self.policy.pinned)
        ring = list(self.policy.ring)
        held = self.policy.read(key, self.now)
        decision = self.policy.admit(key, size, self.now)
        lost = set(before) - set(self.policy.pinned)
        assert all(self.used[gone] <= self.now - 10.0 for gone in lost)  # never one that is in use
        assert set(decision.drop) == lost | (set(ring) - set(self.policy.ring))
        if held:
            assert not decision.drop
        if decision.place != "none":
            assert self.policy.read(key, self.now)
        elif not held:
            assert size > RING
        if sum(before.values()) + size <= PINNED and not held:
            assert decision.place == "pinned"
            assert not decision.drop
        if decision.place == "ring" and not held:
            assert [*ring, key][-len(self.policy.ring) :] == list(self.policy.ring)  # first in, first out
        self.used[key] = self.now

    @rule(key=st.sampled_from("abcdefgh"))
    def read(self, key: str) -> None:
        if self.policy.read(key, self.now):
            self.used[key] = self.now

    @rule(key=st.sampled_from("abcdefgh"))
    def forget(self, key: str) -> None:
        self.policy.forget(key)
        assert not self.policy.read(key, self.now)

    @invariant()
    def within_the_budget(self) -> None:
        assert self.policy.pinned_bytes == sum(self.policy.pinned.values()) <= PINNED
        assert self.policy.ring_bytes == sum(self.policy.ring.values()) <= RING
        assert not set(self.policy.pinned) & set(self.policy.ring)


TestCaching = Caching.TestCase
TestCaching.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis"), unix=True) as server:
        yield server


def test_the_script_decides_as_the_policy(redis: Redis) -> None:
    """The same history, step by step, with a clock of its own."""

    class Comparing(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            redis.client.flushall()
            self.policy = Policy(PINNED + RING, RING, idle=10_000)  # both count milliseconds: no rounding
            self.index = Index("test", pinned_limit=PINNED, ring_limit=RING, idle=10_000, keep=10_000_000, lease=60_000)
            self.now = 1
            self.sizes: dict[str, int] = {}

        @rule(ms=st.integers(0, 8_000))
        def wait(self, ms: int) -> None:
            self.now += ms

        @rule(key=st.sampled_from("abcdefgh"), size=SIZES)
        def admit(self, key: str, size: int) -> None:
            self.now += 1  # what was used in the same millisecond may be replaced in any order
            size = self.sizes.setdefault(key, size)
            known = key in self.policy.pinned or key in self.policy.ring
            decision = self.policy.admit(key, size, self.now)
            begun = self.index.begin(redis.client, key, size, "token", self.now)
            assert begun.turn == ("alone" if decision.place == "none" else "fetch")
            assert begun.known == known
            assert tuple(dropped for dropped, _ in begun.dropped) == decision.drop
            assert all(nbytes == self.sizes[dropped] for dropped, nbytes in begun.dropped)
            assert self.index.end(redis.client, key, "token", keep=True) == (begun.turn == "fetch")

        @rule(key=st.sampled_from("abcdefgh"))
        def read(self, key: str) -> None:
            self.now += 1
            self.policy.read(key, self.now)
            self.index.touch(redis.client, key, self.now, stale=0)

        @rule(key=st.sampled_from("abcdefgh"))
        def forget(self, key: str) -> None:
            self.policy.forget(key)
            self.index.forget(redis.client, key)

        @invariant()
        def the_same(self) -> None:
            assert self.index.sizes(redis.client) == self.policy.pinned | self.policy.ring
            totals = {"pinned": self.policy.pinned_bytes, "ring": self.policy.ring_bytes}
            assert self.index.totals(redis.client) == totals

    run_state_machine_as_test(Comparing, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))


def hit_ratio_of_lru(reads: list[int], capacity: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in reads:
        hits += key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits / len(reads)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_data_gives_that_share_of_hits(share: float) -> None:
    """After the first epoch, in fresh orders; LRU gets far less."""
    count, generator = 400, np.random.default_rng(1)
    epochs = [generator.permutation(count).tolist() for _ in range(5)]
    policy = Policy(int(count * share), 4)
    hits = 0
    for epoch, order in enumerate(epochs):
        for key in order:
            held = policy.read(str(key), epoch)
            if not held:
                policy.admit(str(key), 1, epoch)
            hits += held and epoch > 0
    ratio = hits / (4 * count)
    lru = hit_ratio_of_lru([key for order in epochs for key in order], int(count * share))
    assert abs(ratio - share) <= 0.02
    assert share == 1.0 or ratio > 2 * lru


@given(st.integers(0, 1 << 45))
def test_the_ring_is_a_small_part(budget: int) -> None:
    assert 0 <= ring_of(budget) <= max(budget // 8, 1)
    assert ring_of(budget) >= budget // 64


def test_idle_ones_are_asked_for_only_when_there_is_no_room() -> None:
    def idle() -> Iterator[tuple[str, int]]:
        raise AssertionError
        yield

    assert decide(5, pinned=0, pinned_limit=5, idle=idle(), ring=[], ring_limit=0).place == "pinned"


class Breaking(RuleBasedStateMachine):
    """The circuit breaker: never more than one attempt while it isn't closed, and pauses within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(first=1.0, last=8.0, chance=lambda: 0.0)
        self.now, self.attempt, self.closed, self.failures, self.opened = 0.0, False, True, 0, 0.0

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        allowed = self.breaker.allows(self.now)
        if self.closed:
            assert allowed
        elif allowed:
            pause = min(8.0, 2.0 ** (self.failures - 1))
            assert self.now >= self.opened + pause
            self.attempt, self.opened = True, self.now

    @precondition(lambda self: self.closed or self.attempt)
    @rule(fails=st.booleans())
    def report(self, fails: bool) -> None:
        if fails:
            assert self.breaker.failed(self.now) == self.closed
            self.failures, self.opened = (1 if self.closed else self.failures + 1), self.now
            self.closed = self.attempt = False
        else:
            assert self.breaker.succeeded() == self.attempt
            self.closed, self.attempt = True, False


TestBreaking = Breaking.TestCase
TestBreaking.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
