"""The simulation of `scale` is of the cache's own policy."""

import numpy as np

from benchmarks.questions.scale import Node
from pipelines.streaming import Order, Ordering
from storage.cache.policy import Policy


def test_a_simulated_node_keeps_what_the_policy_keeps() -> None:
    order = Order([10] * 200, batch=8, seed=1, ordering=Ordering(lanes=4, keep_lanes=True))
    for rank in (0, 3):
        node, policy = Node(np.zeros(200, np.bool_), budget=7 * 64), Policy(7 * 64, ring=0)
        for epoch in range(4):
            shards = order.reads(epoch, rank, 4)[0]
            missed = 0
            for shard in map(str, shards):
                missed += 0 if policy.read(shard, 0.0) else 64
                policy.admit(shard, 64, 0.0)
            node.read(shards, 64)
            assert node.missed[-1] == missed
            assert {str(shard) for shard in np.flatnonzero(node.held)} == set(policy.pinned)
        assert node.missed[-1] == node.missed[0] - 7 * 64
