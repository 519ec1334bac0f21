"""A reader of shards through the tiers, in processes of its own: `python cache_reader.py '{"lake": …}'`.

Prints one JSON line a process: what it read (path → BLAKE3) and its counters. With `stop_at` it prints `stopped` there
and goes no further: `lease` before it reads the lake, `half` when half has arrived, `write` before the file is written,
`writing` when half of it is, `rename` when all of it is and it has no name yet. In these three all has come to Redis,
where the lease isn't given back. With `gate` each process prints `ready` and begins when standard input ends.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.cache.hot import push as push_module
from storage.cache.node import cache as node_module
from storage.cache.write import write
from storage.digest import digest_bytes
from storage.lake import StoredObject, Zone
from storage.objects.retries import RangeReader


def stop(*_: Any, **__: Any) -> None:
    print("stopped", flush=True)
    signal.pause()


def stop_at(place: str) -> None:
    read_into = RangeReader.read_into
    if place == "lease":
        RangeReader.read_into = stop  # type: ignore[method-assign]
    elif place == "half":

        def half(self: RangeReader, path: str, offset: int, out: Any, on_range: Any = None) -> None:
            middle = len(out) // 2 >> 20 << 20
            read_into(self, path, offset, out[:middle], on_range)
            stop()

        RangeReader.read_into = half  # type: ignore[method-assign]
    else:

        def partly(descriptor: int, view: memoryview, *, direct: bool = False) -> None:
            count = {"write": 0, "writing": len(view) // 2, "rename": len(view)}[place]
            write(descriptor, view[:count], direct=direct)
            stop()

        node_module.write = partly  # type: ignore[attr-defined]
        push_module.Pusher._finish = lambda *_, **__: signal.pause()  # type: ignore[method-assign]


def read(job: dict[str, Any]) -> None:
    if job.get("gate"):
        os.write(1, b"ready\n")
        os.read(0, 1)
    node = NodeCache(Path(job["node"]), job["budget"], timeout=60) if job.get("node") else None
    hot = None
    if job.get("hot"):
        hot = HotCache(
            job["hot"], job["budget"], timing=Timing(timeout=job.get("timeout", 10), lease=job.get("lease", 5))
        )
    with Tiered(Zone(Path(job["lake"]), job.get("url")), node, hot) as cache:
        found = {}
        for values in job["objects"]:
            source = cache.fetch(StoredObject(*values))
            found[values[0]] = digest_bytes(source.read_bytes() if isinstance(source, Path) else source)
    counters = {name: tier.as_dict() for name, tier in cache.counters().items()}
    # One write, so that lines of several processes don't mix.
    os.write(1, (json.dumps({"found": found, "counters": counters}) + "\n").encode())


def main() -> None:
    job = json.loads(sys.argv[1])
    if "stop_at" in job:
        stop_at(job["stop_at"])
    children = []
    for _ in range(job.get("processes", 1) - 1):
        child = os.fork()
        if not child:
            read(job)
            os._exit(0)
        children.append(child)
    read(job)
    sys.exit(max([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], default=0))


if __name__ == "__main__":
    main()
