"""What a cluster of 8 nodes asks of S3: one Redis, node caches that hold only what is open, 3 epochs, and Redis with
room for 100, 50 and 25 % of the data.

Bytes are counted by a proxy in front of S3. The hit ratio is of all bytes that the nodes asked for: those that did not
come from S3. Beside it the same reads through a cache that replaces the least recently used, simulated.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.contenders.ours import remote, settings
from benchmarks.outcome import Bar, Outcome
from benchmarks.parts.proxy import Counter, counting
from benchmarks.parts.servers import BUCKET, redis, s3
from benchmarks.parts.works import load
from benchmarks.rounds import Entrant, Process, say, started
from benchmarks.setting import Setting
from pipelines.streaming import Order, Ordering

NODES = 8  # 2 for a tiny one
EPOCHS = 3
SHARES = (1.0, 0.5, 0.25)
SHARD_BYTES = 256 << 10  # small, so that a small dataset has as many shards as a large one
RING = 64  # the ring is 1/64 of the budget, as it is by default for large ones


def ask(setting: Setting) -> Outcome:
    with s3(setting) as env, counting(env["AWS_ENDPOINT_URL"]) as counter:
        job = {"lake": f"s3://{BUCKET}/pages-{'tiny' if setting.tiny else 'all'}", "shard_bytes": SHARD_BYTES}
        work = load("pages", setting.data, setting.tiny, job)
        records = remote(work).manifest().records()
        sizes = [record["bytes"] for record in records]
        count = 2 if setting.tiny else NODES
        cut = {"lanes": count, "window": 2 * max(record["rows"] for record in records)}
        rows, ordering = [record["rows"] for record in records], Ordering(**cut)
        order = Order(rows, batch=work.batch, seed=settings(work)["seed"], ordering=ordering)
        nodes = [
            Entrant(
                f"node {rank}",
                "node",
                f"{rank}",
                job={**job, **cut, "rank": rank, "world": count, "node_bytes": 16 * SHARD_BYTES},
                env={**env, "AWS_ENDPOINT_URL": counter.url},
            )
            for rank in range(count)
        ]
        found = {}
        with started(nodes, "pages", setting) as processes:
            for share in SHARES:
                found[share] = _cluster(processes, share, sum(sizes), counter)
    simulated = {share: _least_recently_used(order, sizes, share, count) for share in SHARES}
    return _outcome(found, simulated, sum(sizes), count)


def _cluster(processes: Mapping[str, Process], share: float, dataset: int, counter: Counter) -> list[dict[str, float]]:
    """Each epoch's bytes from S3, and those that the nodes asked for, with an empty Redis of `share` of the dataset."""
    budget = round(share * dataset)
    epochs = []
    with ExitStack() as stack:
        url = stack.enter_context(redis(budget))
        folders = {name: stack.enter_context(TemporaryDirectory()) for name in processes}
        for number in range(EPOCHS):
            say(f"{share:.0%} of the data, epoch {number + 1}")
            before = counter.received
            for name, process in processes.items():
                folder = str(Path(folders[name]) / str(number))  # what was open is not carried over
                process.tell(number=number, folder=folder, url=url, budget=budget, ring=budget // RING)
            answers = [process.answer() for process in processes.values()]
            asked = sum(answer["hot"] + answer["lake"] for answer in answers)
            epochs.append({"s3": counter.received - before, "asked": asked})
    return epochs


def _least_recently_used(order: Order, sizes: list[int], share: float, nodes: int) -> list[float]:
    """Hit ratio by epoch of the same reads through a cache of that size that replaces the least recently used."""
    budget, used, held = round(share * sum(sizes)), 0, OrderedDict[int, int]()
    ratios = []
    for epoch in range(EPOCHS):
        asked = hit = 0
        for shard in _reads(order, epoch, nodes):
            asked += sizes[shard]
            if shard in held:
                hit += sizes[shard]
                held.move_to_end(shard)
                continue
            held[shard] = sizes[shard]
            used += sizes[shard]
            while used > budget:
                used -= held.popitem(last=False)[1]
        ratios.append(hit / asked)
    return ratios


def _reads(order: Order, epoch: int, nodes: int) -> Iterator[int]:
    """The shards that the nodes ask for, side by side."""
    needs = [[int(shard) for part in order.ahead(epoch, 0, rank, nodes) for shard in part] for rank in range(nodes)]
    for turn in range(max(map(len, needs))):
        yield from (need[turn] for need in needs if turn < len(need))


def _outcome(
    found: Mapping[float, list[dict[str, float]]], lru: Mapping[float, list[float]], dataset: int, nodes: int
) -> Outcome:
    first = {share: epochs[0]["s3"] / dataset for share, epochs in found.items()}
    hits = {share: [1 - epoch["s3"] / epoch["asked"] for epoch in epochs] for share, epochs in found.items()}
    later = {share: sum(ratios[1:]) / (EPOCHS - 1) for share, ratios in hits.items()}
    lru_later = {share: sum(ratios[1:]) / (EPOCHS - 1) for share, ratios in lru.items()}
    bars = [
        Bar("S3 bytes of epoch 1 at 100 %, × the dataset", 1.02, first[1.0], most=True),
        *(Bar(f"hit ratio at {s:.0%}, off the share by", 0.02, abs(later[s] - s), most=True) for s in SHARES),
    ]
    table = [
        [f"{s:.0%}", *(f"{e['s3'] / dataset:.3f}" for e in found[s]), f"{later[s]:.3f}", f"{lru_later[s]:.3f}"]
        for s in SHARES
    ]
    columns = ["Redis holds", *(f"S3, epoch {n + 1}" for n in range(EPOCHS)), "hit ratio, later", "with LRU"]
    lines: dict[str, Any] = {
        "Shardline": [[s, later[s]] for s in SHARES],
        "least recently used": [[s, lru_later[s]] for s in SHARES],
        "ideal": [[s, s] for s in SHARES],
    }
    more = {
        "s3_over_dataset": {f"{s:g}": first[s] for s in SHARES},
        "hit_ratio": {f"{s:g}": later[s] for s in SHARES},
        "s3_over_dataset_by_epoch": {f"{s:g}": [e["s3"] / dataset for e in found[s]] for s in SHARES},
        "hit_ratio_by_epoch": {f"{s:g}": hits[s] for s in SHARES},
        "lru_hit_ratio": {f"{s:g}": lru_later[s] for s in SHARES},
        "nodes": nodes,
        "dataset_bytes": dataset,
        "plot": {"x": "Redis' share of the data", "y": "hit ratio after epoch 1", "lines": lines},
    }
    return Outcome("egress", "× the dataset", first[1.0], {}, 1.0, bars, columns, table, more)
