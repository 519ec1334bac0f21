"""The cache tiers that a recipe's parameters ask for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipelines.params import Cache
from pipelines.params.environment import expand
from pipelines.workspace import STATE, Workspace
from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.cache.hot.address import check
from storage.cache.hot.embedded import Embedded
from storage.cache.node.place import check_apart
from storage.errors import ParamsError
from storage.lake import ZONES, Zone
from storage.redact import mask

EMBEDDED = "embedded"
_MIB = 1 << 20
_HOUR = 3600.0


def open_cache(ws: Workspace, zone: Zone) -> Tiered:
    """The tiers before `zone`. Where it is local both stand aside, unless they are asked for. Raises ParamsError."""
    return Tiered(zone, open_node(ws, zone), open_hot(ws))


def open_node(ws: Workspace, zone: Zone) -> NodeCache | None:
    """The node cache, if it is on; one that holds nothing, after a warning, where its folder cannot be read. Raises
    ParamsError where its folder is a place of one of the recipe's zones."""
    settings, cache = ws.params.cache.node, ws.params.cache
    if not (settings.enabled if settings.enabled is not None else zone.root is None):
        return None
    folder = ws.project / Path(expand("cache.node.folder", settings.folder)).expanduser()
    zones = [ws.zone(name) for name in ZONES]
    check_apart(folder, [place for each in zones for place in (each.folder, each.root) if place is not None])
    ring, idle = _bytes(settings.ring_mb), cache.idle_hours * _HOUR
    make = partial(NodeCache, folder, ring_bytes=ring, idle=idle, timeout=cache.hot.wait_s)
    if (budget := _bytes(settings.budget_mb)) is not None:
        return make(budget)
    none = make(0)
    try:
        return make((_free(folder) + sum(none.digests().values())) // 2)
    except OSError as error:
        none.complain(error)
        return none


def open_hot(ws: Workspace) -> HotCache | None:
    """The hot cache, if there is a URL; `embedded` is started. Nothing else is connected to."""
    cache, settings = ws.params.cache, ws.params.cache.hot
    if settings.url is None:
        return None
    budget, server = round(settings.budget_mb * _MIB), None
    if settings.url == EMBEDDED:
        server = _embedded(ws, budget)
        url = server.url
    else:
        url = hot_url(settings.url)
    return HotCache(
        url,
        budget,
        _bytes(settings.ring_mb),
        timing=Timing(
            timeout=settings.timeout_ms / 1000,
            wait=settings.wait_s,
            lease=settings.lease_s,
            idle=cache.idle_hours * _HOUR,
        ),
        prefix=settings.prefix,
        server=server,
    )


def hot_url(url: str) -> str:
    """`cache.hot.url` with the environment's values in it, checked. Raises ParamsError."""
    expanded = expand("cache.hot.url", url)
    try:
        check(expanded)
    except ValueError as error:
        raise ParamsError(f"cache.hot.url: {error}; or `embedded`. See docs/cache.md.") from None
    return expanded


@contextmanager
def keep_embedded(ws: Workspace) -> Iterator[None]:
    """Keep the embedded server, where the recipe asks for one, from the first to the last of several commands."""
    server = None
    if ws.params.cache.hot.url == EMBEDDED:
        server = _embedded(ws, round(ws.params.cache.hot.budget_mb * _MIB))
    try:
        yield
    finally:
        if server is not None:
            server.close()


def is_cached(ws: Workspace) -> bool:
    """Whether a tier lies before the shards."""
    return ws.params.cache.hot.url is not None or open_node(ws, ws.zone("shards")) is not None


def describe_hot(cache: Cache) -> str:
    """Where the hot cache is, without passwords."""
    return mask(cache.hot.url) if cache.hot.url else "off"


def _embedded(ws: Workspace, budget: int) -> Embedded:
    try:
        return Embedded(ws.project / STATE / "valkey", budget)
    except (OSError, RuntimeError) as error:
        raise ParamsError(f"cache.hot.url=embedded: {error}") from error


def _bytes(mebibytes: float | None) -> int | None:
    return None if mebibytes is None else round(mebibytes * _MIB)


def _free(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
