"""Filling, showing and emptying the caches of a recipe's shards: `shardline cache`."""

import json
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Literal, TypeVar

from pipelines.caching.tiers import EMBEDDED, describe_hot, open_cache
from pipelines.console.formats import human_bytes
from pipelines.console.progress import progress, say
from pipelines.console.tables import print_table
from pipelines.streaming import Loading, Stream
from pipelines.streaming.from_params import parts_of_train
from pipelines.streaming.options import Parts
from pipelines.workspace import Workspace
from storage.cache import HotCache, NodeCache, Tiered
from storage.cache.hot.link import Unavailable
from storage.cache.tiered import objects_of
from storage.errors import DataError, ParamsError
from storage.lake import StoredObject
from storage.redact import mask

T = TypeVar("T")
Tier = Literal["node", "hot", "both"]
_SIDE_BY_SIDE = 4  # shards fetched at once
_LOST = {
    "node": "is the disk full, or the folder not writable? Free some space, or set cache.node.folder",
    "hot": "Redis is full (set its maxmemory to 1.3 x cache.hot.budget_mb, or lower that) or slower than "
    "cache.hot.timeout_ms, or the node cache had them already (then `--tier hot` brings them)",
}


def warm(ws: Workspace, tier: Tier = "both", rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Fetch the shards of the train split that rank `rank` of `world` reads first, in that order, until the tiers are
    full or all are there. A tier that cannot be used is passed over with a warning, unless it is the one asked for.

    Returns `shards` and `bytes` that a tier holds by then, `left` shards that none holds, `lake`: the bytes read from
    the lake, `held`: how many of the shards each tier holds, and `lost`: how many it doesn't, though it had room for
    all that were fetched. Raises ParamsError where the tier is off or there is no such rank, DataError where the one
    asked for cannot be used, and the lake's errors.
    """
    if not 0 <= rank < world:
        raise ParamsError(
            f"--rank {rank} of --world {world}: there is no such rank. They count from 0 to --world - 1: lower --rank "
            "or raise --world."
        )
    with _opened(ws, tier) as cache:
        objects = list(_ahead(ws, rank, world))
        own = {obj.digest: obj.plain_bytes for obj in objects}
        rooms = _answers(ws, cache, tier, lambda part: _room(part, own), 0)
        wanted = list(_until_full(objects, max(rooms.values())))
        done = 0
        with progress("warm", len(objects), "shards") as advance, ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            for obj in _side_by_side(pool, cache, iter(wanted)):
                done += obj.plain_bytes
                advance(1, human_bytes(done))
        held = _answers(ws, cache, tier, lambda part: part.holds(own), set[str]())
        counters = cache.counters()
    there = [obj for obj in objects if any(obj.digest in digests for digests in held.values())]
    fetched = {obj.digest for obj in wanted}
    return {
        "shards": len(there),
        "left": len(objects) - len(there),
        "bytes": sum(obj.plain_bytes for obj in there),
        "lake": counters["lake"].bytes,
        "held": {name: len(digests) for name, digests in held.items()},
        "lost": {name: len(fetched - digests) if rooms[name] >= done else 0 for name, digests in held.items()},
    }


def warm_and_say(ws: Workspace, tier: Tier, rank: int, world: int) -> None:
    """The command."""
    if ws.params.cache.hot.url == EMBEDDED and tier != "node":
        say("cache.hot.url=embedded: that server ends with the processes that use it, this command among them.")
    did = warm(ws, tier, rank, world)
    for name, lost in did["lost"].items():
        if lost:
            say(f"{name}: {lost} shards could not be kept: {_LOST[name]}.")
    held = ", ".join(f"{name} {count}" for name, count in did["held"].items())
    left = f"; {did['left']} more have no place" if did["left"] else ""
    say(
        f"{did['shards']} shards, {human_bytes(did['bytes'])}, are at hand ({held}); {human_bytes(did['lake'])} came "
        f"from the lake{left}"
    )


def show(ws: Workspace, as_json: bool = False) -> None:
    """One row a tier: bytes, shards, hit ratio since it was begun, budget."""
    with open_cache(ws, ws.zone("shards")) as cache:
        rows = {"node": _node_row(cache.node), "hot": _hot_row(ws, cache)}
    if as_json:
        say(json.dumps(rows))
        return
    shown = []
    for name, row in rows.items():
        if "bytes" not in row:
            shown.append([name, row["where"], row["state"]])
            continue
        ratio = "-" if row["hit_ratio"] is None else f"{row['hit_ratio']:.3f}"
        sizes = human_bytes(row["bytes"]), str(row["items"]), human_bytes(row["budget"])
        shown.append([name, row["where"], *sizes, ratio, *(str(row[key]) for key in ("hits", "misses", "waits"))])
    print_table(["tier", "where", "bytes", "items", "budget", "hit ratio", "hits", "misses", "waits"], shown)


def drop(ws: Workspace, tier: Tier = "both", everything: bool = False) -> None:
    """Empty the tiers of this recipe's shards, or of all."""
    with _opened(ws, tier) as cache:
        own = None if everything else [obj.digest for obj in objects_of(cache.zone.manifest().table)]
        for name, part in _parts(cache).items():
            try:
                dropped = part.drop(list(part.digests()) if own is None else own)
            except (Unavailable, OSError) as error:
                raise _unusable(ws, part, error) from error
            say(f"{name}: {human_bytes(dropped)} dropped")


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


def _parts(cache: Tiered) -> dict[str, NodeCache | HotCache]:
    """The tiers that are on, by name."""
    parts = {"node": cache.node, "hot": cache.hot}
    return {name: part for name, part in parts.items() if part is not None}


def _answers(
    ws: Workspace, cache: Tiered, tier: Tier, ask: Callable[[NodeCache | HotCache], T], otherwise: T
) -> dict[str, T]:
    """What each tier answers; `otherwise` for one that cannot be used, which is told. Raises DataError where that is
    the one asked for."""
    answers = {}
    for name, part in _parts(cache).items():
        try:
            answers[name] = ask(part)
        except (Unavailable, OSError) as error:
            if tier != "both":
                raise _unusable(ws, part, error) from error
            if isinstance(part, NodeCache) and isinstance(error, OSError):
                part.complain(error)  # of Redis its link has told
            answers[name] = otherwise
    return answers


def _unusable(ws: Workspace, part: NodeCache | HotCache, error: Exception) -> DataError:
    """What to tell of a tier that `error` keeps from being used."""
    if isinstance(part, NodeCache):
        return DataError(
            f"The node cache {part.folder} cannot be used: {error}. Set cache.node.folder to a folder that can be "
            "written."
        )
    why = mask(str(error.__cause__ or "it failed a moment ago")).rstrip(".")
    return DataError(
        f"The hot cache {describe_hot(ws.params.cache)} cannot be reached: {why}. Start it or set cache.hot.url; where "
        "it is slow, raise cache.hot.timeout_ms."
    )


def _ahead(ws: Workspace, rank: int, world: int) -> Iterator[StoredObject]:
    """The shards of the first epoch, once each, in the order in which this rank needs them."""
    zone, settings = ws.zone("shards"), ws.params.stream
    manifest = zone.manifest()
    parts = parts_of_train(settings, manifest) | Parts(loading=Loading(prefetch=0))
    with Stream(
        zone, manifest, split="train", batch_size=settings.batch_size, seed=ws.params.seed, rank=rank, world=world,
        **parts,
    ) as stream:  # fmt: skip
        named = (shard for shards in stream.order.ahead(0, 0, rank, world) for shard in shards.tolist())
        for shard in dict.fromkeys(named):  # a domain may be gone through more than once
            yield stream.stored(shard)


def _room(part: NodeCache | HotCache, own: Container[str]) -> int:
    """Bytes that a tier can pin of `own`: what comes after those would only push others out of its ring. Others' shards
    that nobody reads any more give place."""
    others = sum(size for digest, size in part.in_use().items() if digest not in own)
    return part.budget - part.ring_limit - others


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
    try:
        return {"where": str(node.folder), "state": "on", **_flat(node.usage())}
    except OSError as error:
        return {"where": str(node.folder), "state": f"not available: {type(error).__name__}"}


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
