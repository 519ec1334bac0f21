"""Leases on a real Valkey: whatever the readers do, one at most holds a shard's lease, and nothing is counted twice."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.servers import Redis, redis_server

from storage.cache.hot.index import Index

pytestmark = pytest.mark.xdist_group("redis")

READERS, SHARDS = st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["s1", "s2", "s3", "s4"])
SIZE = 10


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis"), unix=True) as server:
        yield server


def test_leases(redis: Redis) -> None:
    class Leasing(RuleBasedStateMachine):
        """Readers ask, renew, end, die (their lease expires) and are stopped for so long that another takes over."""

        def __init__(self) -> None:
            super().__init__()
            redis.client.flushall()
            # Two may be pinned and one is in the ring: the fourth shard has no place while the ring's is arriving.
            self.index = Index("lease", pinned_limit=2 * SIZE, ring_limit=SIZE, idle=10**9, keep=10**9, lease=60_000)
            self.holder: dict[str, str] = {}  # shard → token
            self.mine: dict[tuple[str, str], str] = {}  # what each reader believes to hold
            self.turn = 0

        @rule(reader=READERS, shard=SHARDS)
        def ask(self, reader: str, shard: str) -> None:
            self.turn += 1
            token = f"{reader}-{self.turn}"
            known = shard in self.index.sizes(redis.client)
            begun = self.index.begin(redis.client, shard, SIZE, token)
            if shard in self.holder:
                assert begun.turn == "wait"
            elif begun.turn == "fetch":
                assert begun.known == known
                assert not {gone for gone, _ in begun.dropped} & set(self.holder)  # never one that is arriving
                self.holder[shard] = self.mine[reader, shard] = token
            else:
                assert begun.turn == "alone"
                assert not known

        @rule(reader=READERS, shard=SHARDS)
        def renew(self, reader: str, shard: str) -> None:
            token = self.mine.get((reader, shard), "none")
            if shard not in self.holder and shard in self.index.sizes(redis.client):
                self.holder[shard] = token  # it had expired, and nobody has it
            assert self.index.renew(redis.client, shard, token) == (self.holder.get(shard) == token)

        @rule(reader=READERS, shard=SHARDS, keep=st.booleans())
        def end(self, reader: str, shard: str, keep: bool) -> None:
            token = self.mine.pop((reader, shard), "none")
            own = self.holder.get(shard) == token
            known = shard in self.index.sizes(redis.client)
            has_place = self.index.end(redis.client, shard, token, keep=keep)
            assert has_place == (known and (keep or not own))
            if own:
                del self.holder[shard]

        @rule(shard=SHARDS)
        def expire(self, shard: str) -> None:
            """The holder died, or was stopped for longer than its lease."""
            redis.client.delete(self.index.key(f"lease:{shard}"))
            self.holder.pop(shard, None)

        @rule(shard=SHARDS)
        def drop(self, shard: str) -> None:
            self.index.forget(redis.client, shard)

        @invariant()
        def nothing_is_counted_twice(self) -> None:
            sizes, totals = self.index.sizes(redis.client), self.index.totals(redis.client)
            assert sum(sizes.values()) == sum(totals.values())
            assert totals["pinned"] <= 2 * SIZE
            assert totals["ring"] <= SIZE
            leases = {key.decode().rsplit(":", 1)[1] for key in redis.client.keys("{lease}:lease:*")}
            assert leases == set(self.holder)

    run_state_machine_as_test(Leasing, settings=settings(max_examples=50, stateful_step_count=40, deadline=None))


def test_every_key_expires(redis: Redis) -> None:
    redis.client.flushall()
    index = Index("lease", pinned_limit=SIZE, ring_limit=SIZE, idle=1000, keep=5000, lease=2000)
    for shard in ("s1", "s2"):
        assert index.begin(redis.client, shard, SIZE, "token").turn == "fetch"
    index.report(redis.client, {"hits": 1})
    keys = redis.client.keys("*")
    assert len(keys) == 8
    assert all(0 < redis.client.pttl(key) <= 5000 for key in keys)
