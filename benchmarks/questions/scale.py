"""What 1 to 1,024 nodes read of 1 PB, an epoch after the other: the order and the cache's policy, simulated.

The order is the real one: `Order.reads` says which shards a node reads. A node keeps what comes first, up to the budget
of its cache, and never replaces it. Lanes are free, or kept across epochs, or as few as are chosen by default. The
quality of the shuffle beside it is measured on a model: fewer rows, a 16th of the lanes, but as many shards a window
and as many windows a batch.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.outcome import Bar, Outcome
from benchmarks.rounds import say
from benchmarks.setting import Setting
from benchmarks.studies.shuffle_quality import COLUMNS, Quality, full_shuffle, quality
from pipelines.streaming import Order, Ordering

NODES = (1, 4, 16, 64, 256, 1024)
EPOCHS = 3
SHARD_BYTES = 256 << 20
SHARD_ROWS = 2560  # of about 100 KB
DATASET = 10**15
NODE_BUDGET = 2 * 10**12
BATCH = 8192
ASKED = 2  # nodes of a cluster that are simulated; they are all alike

FEW = "16 lanes"  # the default for data of this size
#: How the order is set, by name.
ORDERS = {
    FEW: Ordering(lanes=16),
    "1,024 lanes": Ordering(lanes=1024),
    "1,024 lanes, kept": Ordering(lanes=1024, keep_lanes=True),
}
MODEL: dict[str, Any] = {"rows": 1 << 22, "shard_rows": 320, "batch": 64}
MODELS = {  # lanes by 16 fewer
    FEW: Ordering(lanes=1, window=8192),
    "1,024 lanes": Ordering(lanes=64, window=8192),
    "1,024 lanes, kept": Ordering(lanes=64, window=8192, keep_lanes=True),
}


@dataclass
class Node:
    """A node's cache: what came first, up to `budget` bytes, and is never replaced."""

    held: npt.NDArray[np.bool_]  # [shards]
    budget: int
    missed: list[int] = field(default_factory=list)  # bytes an epoch that it didn't hold

    def read(self, shards: npt.NDArray[np.int64], shard_bytes: int) -> None:
        """One epoch's shards, in their order."""
        missing = shards[~self.held[shards]]
        self.missed.append(len(missing) * shard_bytes)
        room = (self.budget - int(np.count_nonzero(self.held)) * shard_bytes) // shard_bytes
        self.held[missing[: max(0, room)]] = True


def ask(setting: Setting) -> Outcome:
    shrink = 1000 if setting.tiny else 10 if setting.quick else 1
    shards = DATASET // SHARD_BYTES // shrink
    budget = NODE_BUDGET // shrink
    found = {}
    for name, ordering in ORDERS.items():
        say(f"{name}: {shards:,} shards")
        found[name] = simulate(np.full(shards, SHARD_ROWS), ordering, budget)
    dataset = shards * SHARD_BYTES
    rows = MODEL["rows"] >> (5 if setting.tiny else 2 if setting.quick else 0)
    model = {name: quality(model_order(rows, ordering)) for name, ordering in MODELS.items()}
    return _outcome(found, model, full_shuffle(rows, MODEL["batch"]), dataset, budget)


def simulate(
    shard_rows: npt.NDArray[np.int64], ordering: Ordering, budget: int, shard_bytes: int = SHARD_BYTES
) -> dict[int, list[float]]:
    """By number of nodes: bytes that a node asks of what lies behind its cache, by epoch."""
    order = Order(shard_rows, batch=BATCH, seed=1, ordering=ordering)
    clusters = {
        nodes: {
            rank: Node(np.zeros(len(shard_rows), np.bool_), budget) for rank in (0, nodes // 2)[: min(ASKED, nodes)]
        }
        for nodes in NODES
    }
    for epoch in range(EPOCHS):
        for nodes, cluster in clusters.items():
            for rank, node in cluster.items():
                node.read(order.reads(epoch, rank, nodes)[0], shard_bytes)
    return {
        nodes: np.mean([node.missed for node in cluster.values()], axis=0).tolist()
        for nodes, cluster in clusters.items()
    }


def model_order(rows: int, ordering: Ordering) -> Order:
    shards = np.full(rows // MODEL["shard_rows"], MODEL["shard_rows"])
    return Order(shards, batch=MODEL["batch"], seed=1, ordering=ordering)


def _outcome(
    found: dict[str, dict[int, list[float]]], model: dict[str, Quality], full: Quality, dataset: int, budget: int
) -> Outcome:
    table: list[list[str]] = []
    clusters: dict[str, dict[int, list[float]]] = {}
    for name, by_nodes in found.items():
        clusters[name] = {nodes: [value * nodes / dataset for value in missed] for nodes, missed in by_nodes.items()}
        for nodes, missed in by_nodes.items():
            share = dataset / nodes
            then = _bytes(share - budget) if share > budget else "nothing"
            reads = [" / ".join(_bytes(value) for value in missed), f"{_bytes(share)}, then {then}"]
            cluster = " / ".join(f"{value:.3f}" for value in clusters[name][nodes])
            cells = model[name].cells() if nodes == NODES[0] else [""] * len(COLUMNS)
            table.append([f"{name}: {nodes:,}", *reads, cluster, *cells])
    table.append(["a full shuffle", "", "", "", *full.cells()])
    most = max(NODES)
    node = found["1,024 lanes, kept"][most][0] / (dataset / most)
    later = clusters["1,024 lanes, kept"][most][-1]
    bars = [
        Bar(f"a node of {most:,} reads in epoch 1, × its share", 1.01, node, most=True),
        Bar(f"lanes kept, {most:,} nodes: all read in epoch {EPOCHS}, × the dataset", 0.01, later, most=True),
    ]
    least = [[nodes, max(0.0, 1 - nodes * budget / dataset)] for nodes in NODES]
    # Few lanes read far more: up to 64 times the data, which would hide the others.
    lines = {name: [[nodes, of[-1]] for nodes, of in by.items()] for name, by in clusters.items() if name != FEW}
    more = {
        "cluster_over_dataset": clusters,
        "node_bytes": found,
        "node_budget": budget,
        "dataset_bytes": dataset,
        "quality": {name: vars(value) for name, value in {**model, "full": full}.items()},
        "plot": {
            "x": "nodes",
            "y": f"read in epoch {EPOCHS}, × the data",
            "lines": {**lines, "ideal": least},
            "log": "x",
        },
    }
    columns = ["lanes: nodes", "a node reads, by epoch", "ideal", "all read, × data, by epoch", *COLUMNS]
    return Outcome("scale", "× the ideal", node, {}, 1.0, bars, columns, table, more)


def _bytes(value: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e6:.3g} MB" if value else "0"
