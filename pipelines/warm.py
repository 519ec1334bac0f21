"""Filling, showing and emptying the caches of a recipe's shards: `shardline cache`."""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pipelines.caches import EMBEDDED, describe_hot, open_cache
from pipelines.ingest.stage import human_bytes
from pipelines.progress import progress, say
from pipelines.streaming import Stream
from pipelines.workspace import Workspace
from storage.cache import NodeCache, Tiered
from storage.cache.link import Unavailable
from storage.cache.tiered import objects_of
from storage.errors import DataError, ParamsError
from storage.lake import StoredObject

Tier = Literal["node", "hot", "both"]
_SIDE_BY_SIDE = 4  # shards fetched at once
_ORDERING = ("lanes", "window", "first_window", "keep_lanes", "mixture", "batch_ramp", "samples", "bucket_batches")


def warm(ws: Workspace, tier: Tier = "both", rank: int = 0, world: int = 1) -> dict[str, int]:
    """Fetch the shards of the train split that rank `rank` of `world` reads first, in that order, until the tiers are
    full or all are there. Returns `shards` and `bytes` that are there, `left` shards that have no place, and `lake`:
    the bytes read from the lake.

    Raises ParamsError where the tier is off or there is no such rank, and the lake's errors.
    """
    if not 0 <= rank < world:
        raise ParamsError(
            f"--rank {rank} of --world {world}: there is no such rank. They count from 0 to --world - 1: lower --rank "
            "or raise --world."
        )
    with _opened(ws, tier) as cache:
        objects = list(_ahead(ws, rank, world))
        room = _room(cache, {obj.digest for obj in objects})
        count = done = 0
        with progress("warm", len(objects), "shards") as advance, ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            for obj in _side_by_side(pool, cache, _until_full(objects, room)):
                count, done = count + 1, done + obj.plain_bytes
                advance(1, human_bytes(done))
        counters = cache.counters()
    return {"shards": count, "left": len(objects) - count, "bytes": done, "lake": counters["lake"].bytes}


def warm_and_say(ws: Workspace, tier: Tier, rank: int, world: int) -> None:
    """The command."""
    if ws.params.cache.hot.url == EMBEDDED and tier != "node":
        say("cache.hot.url=embedded: that server ends with the processes that use it, this command among them.")
    did = warm(ws, tier, rank, world)
    left = f"; {did['left']} more have no place" if did["left"] else ""
    say(
        f"{did['shards']} shards, {human_bytes(did['bytes'])}, are at hand; {human_bytes(did['lake'])} came from the "
        f"lake{left}"
    )


def show(ws: Workspace, as_json: bool = False) -> None:
    """One row a tier: bytes, shards, hit ratio since it was begun, budget."""
    with open_cache(ws, ws.zone("shards")) as cache:
        rows = {"node": _node_row(cache.node), "hot": _hot_row(ws, cache)}
    if as_json:
        say(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tier", "where", "bytes", "items", "budget", "hit ratio", "hits", "misses", "waits"):
        table.add_column(column, overflow="fold")
    for name, row in rows.items():
        if "bytes" not in row:
            table.add_row(name, row["where"], row["state"])
            continue
        ratio = "-" if row["hit_ratio"] is None else f"{row['hit_ratio']:.3f}"
        sizes = human_bytes(row["bytes"]), str(row["items"]), human_bytes(row["budget"])
        table.add_row(name, row["where"], *sizes, ratio, *(str(row[key]) for key in ("hits", "misses", "waits")))
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def drop(ws: Workspace, tier: Tier = "both", everything: bool = False) -> None:
    """Empty the tiers of this recipe's shards, or of all."""
    with _opened(ws, tier) as cache:
        own = None if everything else [obj.digest for obj in objects_of(cache.zone.manifest().table)]
        if cache.node is not None:
            say(f"node: {human_bytes(cache.node.drop(cache.node.digests() if own is None else own))} dropped")
        if cache.hot is not None:
            try:
                say(f"hot: {human_bytes(cache.hot.drop(own))} dropped")
            except Unavailable as error:
                raise DataError(f"{describe_hot(ws.params.cache)}: {error.__cause__}. Nothing was dropped.") from error


def _opened(ws: Workspace, tier: Tier) -> Tiered:
    """The tiers asked for; at least one must be on."""
    zone = ws.zone("shards")
    cache = open_cache(ws, zone)
    node, hot = cache.node if tier != "hot" else None, cache.hot if tier != "node" else None
    if (node is None and tier != "hot") and (hot is None and tier != "node"):
        raise ParamsError(
            "Both cache tiers are off: the shards lie on this machine. Set cache.node.enabled or cache.hot.url."
        )
    if tier == "node" and node is None:
        raise ParamsError("The node cache is off: the shards lie on this machine. Set cache.node.enabled: true.")
    if tier == "hot" and hot is None:
        raise ParamsError("The hot cache is off. Set cache.hot.url.")
    return Tiered(zone, node, hot)


def _ahead(ws: Workspace, rank: int, world: int) -> Iterator[StoredObject]:
    """The shards of the first epoch, once each, in the order in which this rank needs them."""
    zone, settings = ws.zone("shards"), ws.params.stream
    manifest = zone.manifest()
    seq_len = settings.seq_len if manifest.header["kind"] == "tokens" else None
    ordering = {name: value for name, value in settings.model_dump().items() if name in _ORDERING}
    if settings.samples == "windows":
        ordering["bucket_batches"] = 1  # as in training
    with Stream(
        zone, manifest, split="train", batch_size=settings.batch_size, seed=ws.params.seed, rank=rank, world=world,
        seq_len=seq_len, prefetch=0, **ordering,
    ) as stream:  # fmt: skip
        named = (shard for shards in stream.order.ahead(0, 0, rank, world) for shard in shards.tolist())
        for shard in dict.fromkeys(named):  # a domain may be gone through more than once
            yield stream.stored(shard)


def _room(cache: Tiered, own: set[str]) -> int:
    """Bytes that the roomier tier can pin of `own`: what comes after those would only push others out of its ring.
    Others' shards that nobody reads any more give place."""
    room = 0
    for tier in [tier for tier in (cache.node, cache.hot) if tier is not None]:
        try:
            others = sum(size for digest, size in tier.in_use().items() if digest not in own)
        except Unavailable:
            continue
        room = max(room, tier.budget - tier.ring_limit - others)
    return room


def _until_full(objects: Sequence[StoredObject], room: int) -> Iterator[StoredObject]:
    for obj in objects:
        room -= obj.plain_bytes
        if room < 0:
            return
        yield obj


def _side_by_side(pool: ThreadPoolExecutor, cache: Tiered, objects: Iterator[StoredObject]) -> Iterator[StoredObject]:
    """Fetch `objects`, some at a time; yields each when it is there."""
    under_way: dict[Future[Any], StoredObject] = {}
    while True:
        for obj in islice(objects, _SIDE_BY_SIDE - len(under_way)):
            under_way[pool.submit(cache.fetch, obj)] = obj
        if not under_way:
            return
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            obj = under_way.pop(future)
            future.result()
            yield obj


def _node_row(node: NodeCache | None) -> dict[str, Any]:
    if node is None:
        return {"where": "-", "state": "off"}
    return {"where": str(node.folder), "state": "on", **_flat(node.usage())}


def _hot_row(ws: Workspace, cache: Tiered) -> dict[str, Any]:
    where = describe_hot(ws.params.cache)
    if cache.hot is None:
        return {"where": "-", "state": "off"}
    try:
        return {"where": where, "state": "on", **_flat(cache.hot.usage())}
    except Unavailable as error:
        return {"where": where, "state": f"not available: {type(error.__cause__).__name__}"}


def _flat(usage: dict[str, Any]) -> dict[str, Any]:
    counters = {name: usage["counters"].get(name, 0) for name in ("hits", "misses", "waits")}
    asked = counters["hits"] + counters["misses"]
    sizes = {name: usage[name] for name in ("bytes", "items", "budget")}
    return sizes | counters | {"hit_ratio": counters["hits"] / asked if asked else None}
