"""The blobs from an S3 server on this machine, with an empty node cache: the whole epoch, and the first batch.

The limit is the fastest plain ranged parallel read of the same objects, by obstore or s3fs, of 4, 8 or 16 MiB a read;
that of the first batch is the same read of the objects that the order's first window needs. An epoch is timed to its
last batch; "until closed" counts what goes on behind it as well: the node cache's files are written.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from benchmarks.contenders.ours import remote, settings
from benchmarks.contenders.plain_s3 import RANGES
from benchmarks.once import Epochs, epochs
from benchmarks.outcome import Bar, Outcome
from benchmarks.parts.servers import BUCKET, Env, s3
from benchmarks.parts.works import load
from benchmarks.rounds import Entrant
from benchmarks.setting import Setting
from pipelines.streaming import Order

MB = 1e6


def ask(setting: Setting) -> Outcome:
    return measure("cold-s3", setting, s3)


def measure(name: str, setting: Setting, server: Callable[[Setting], AbstractContextManager[Env]]) -> Outcome:
    """The comparison by `name` with the S3 server that `server` starts."""
    with server(setting) as env:
        job = {"lake": f"s3://{BUCKET}/blobs-{'tiny' if setting.tiny else 'all'}"}
        work = load("blobs", setting.data, setting.tiny, job)
        records = remote(work).manifest().records()
        objects = [(record["path"], record["bytes"]) for record in records]
        order = Order([record["rows"] for record in records], batch=work.batch, seed=settings(work)["seed"])
        first = [objects[shard] for shard in next(iter(order.ahead(0, 0))).tolist()]
        plain = [
            Entrant(f"{client}, {what}", "plain_s3", client, RANGES, {"url": job["lake"], "objects": some}, env)
            for what, some in (("all", objects), ("first window", first))
            for client in ("obstore", "s3fs")
        ]
        ours = Entrant("Shardline", "ours", "cold", job=job, env=env)
        peers = [
            Entrant("MDS", "with_streaming", "cold", (0, 2), job, env, fresh=True),
            Entrant("litdata", "with_litdata", "cold", (0, 2), job, env, fresh=True),
        ]
        found = epochs([*plain, ours, *(peers if setting.peers else ())], "blobs", setting)
    return _outcome(name, found, _bytes(objects), _bytes(first))


def _bytes(objects: Sequence[tuple[str, int]]) -> int:
    return sum(size for _, size in objects)


def _outcome(name: str, found: Mapping[str, Epochs], everything: int, window: int) -> Outcome:
    speed = {name: everything / epochs.seconds / MB for name, epochs in found.items() if "window" not in name}
    ours, peers = speed["Shardline"], {name: value for name, value in speed.items() if name in ("MDS", "litdata")}
    client = max(("obstore", "s3fs"), key=lambda name: speed[f"{name}, all"])
    limit, floor = speed[f"{client}, all"], min(found[f"{name}, first window"].seconds for name in ("obstore", "s3fs"))
    begun = {name: found[name].first for name in ("Shardline", *peers)}
    bars = [Bar(f"× plain reads ({client})", 0.8, ours / limit)]
    bars.append(Bar("first batch, × plain reads of its window", 1.5, begun["Shardline"] / floor, most=True))
    if "MDS" in peers:
        bars.insert(1, Bar("× MDS", 5, ours / peers["MDS"]))
        bars.append(Bar("first batch, × MDS' first batch", 1, begun["Shardline"] / begun["MDS"], most=True))
    table = [
        [
            name,
            f"{speed[name]:,.0f}",
            _spread(epochs, everything),
            f"{everything / epochs.ended / MB:,.0f}",
            f"{begun[name]:.2f} s" if name in begun else "",
        ]
        for name, epochs in found.items()
        if name in speed
    ]
    table.append([f"plain reads of the first window, {window / MB:,.0f} MB", "", "", "", f"{floor:.2f} s"])
    more = {
        "first_batch_seconds": begun,
        "first_window": {"bytes": window, "plain_seconds": floor},
        "workers": {name: found[name].workers for name in peers},
        "broken": {name: epochs.broken for name, epochs in found.items() if epochs.broken},
        "spread": {name: [everything / s / MB for s in _ends(found[name])] for name in speed},
        "until_closed": {name: everything / found[name].ended / MB for name in speed},
        "bytes": everything,
    }
    columns = ["", "MB/s", "spread", "until closed", "first batch"]
    return Outcome(name, "MB/s", ours, peers, limit, bars, columns, table, more)


def _ends(epochs: Epochs) -> tuple[float, float]:
    return max(epochs.all_seconds), min(epochs.all_seconds)


def _spread(epochs: Epochs, everything: int) -> str:
    slow, fast = (everything / seconds / MB for seconds in _ends(epochs))
    return f"{slow:,.0f} – {fast:,.0f}"
