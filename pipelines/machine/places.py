"""The places that a recipe's parameters name: disks, the lake, Redis, MLflow. Are they there, and how fast?"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.params.environment import expand
from pipelines.workspace import Workspace
from storage.lake import ZONES
from storage.redact import mask

GIB = 1 << 30
_PATIENCE = 3.0  # seconds


def disks(ws: Workspace | None, root: Path, *, measure: bool) -> list[dict[str, Any]]:
    """The project's disk and the node cache's, once each: free GiB, type, and with `measure` bytes/s."""
    wanted = [("the project's disk", root, "lake.url", False)]
    if ws is not None:
        folder = ws.project / Path(os.path.expandvars(ws.params.cache.node.folder)).expanduser()
        wanted.append(("the node cache's disk", folder, "cache.node.folder", True))
    seen: dict[int, dict[str, Any]] = {}
    found = []
    for what, path, setting, cache in wanted:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        about = {"what": what, "path": str(path), "setting": setting, "cache": cache, **_disk(there)}
        device = there.stat().st_dev
        if measure and device not in seen:
            seen[device] = _speed(there)
        found.append(about | seen.get(device, {}))
    return found


def _disk(folder: Path) -> dict[str, Any]:
    from pipelines.machine.rates import file_system

    usage = shutil.disk_usage(folder)
    return {
        "free_gib": round(usage.free / GIB, 2),
        "total_gib": round(usage.total / GIB, 2),
        "file_system": file_system(folder),
    }


def _speed(folder: Path) -> dict[str, Any]:
    from pipelines.machine.rates import disk_rates

    megabytes = min(256, shutil.disk_usage(folder).free // (20 << 20))  # a twentieth of what is free, at most
    try:
        return disk_rates(folder, int(megabytes)) if megabytes >= 8 else {}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def reached(ws: Workspace) -> dict[str, dict[str, Any]]:
    """Of each remote place that the parameters name: its URL without secrets, and seconds to an answer, or the error
    with what to do. Nothing is started, and nothing waits longer than a few seconds."""
    places: dict[str, tuple[str, str, Callable[[], object]]] = {}
    for name in ZONES:
        zone = ws.zone(name)
        if zone.root is None:
            look = replace(zone, timeout=_PATIENCE).reader.sizes
            do = "is the server up, the endpoint right (AWS_ENDPOINT_URL), the credentials valid? See lake.url"
            places[f"lake, {name}"] = (zone.describe().rstrip("/"), do, lambda look=look: look("objects"))  # type: ignore[misc]
    url = ws.params.cache.hot.url
    if url is not None and url != "embedded":
        do = "training goes on without it, straight from the lake; start it, or mend cache.hot.url"
        places["hot cache"] = (mask(url), do, lambda: _redis(url))
    tracking = urlsplit(ws.tracking_uri)
    if tracking.scheme in ("http", "https"):
        do = "training goes on untracked; is the server up? See MLFLOW_TRACKING_URI"
        places["MLflow"] = (f"{tracking.scheme}://{tracking.hostname}", do, lambda: _connect(tracking))
    with ThreadPoolExecutor(max(1, len(places))) as pool:
        answers = list(pool.map(_asked, [look for _, _, look in places.values()]))
    return {
        name: {"url": url, "do": do} | answer
        for (name, (url, do, _)), answer in zip(places.items(), answers, strict=True)
    }


def _asked(look: Callable[[], object]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        look()
    except Exception as error:  # whatever a client raises, it is what a person must know
        return {"error": mask(" ".join(str(error).split()))[:300] or type(error).__name__}
    return {"seconds": round(time.perf_counter() - began, 4)}


def _redis(url: str) -> None:
    from storage.cache.hot.address import connect

    client, cut = connect(expand("cache.hot.url", url), _PATIENCE)
    try:
        client.ping()
    finally:
        with suppress(Exception):
            cut()


def _connect(address: Any) -> None:
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((address.hostname, port), _PATIENCE).close()
