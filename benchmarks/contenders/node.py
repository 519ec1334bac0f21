"""One node of a cluster: a rank of the stream, with a node cache of its own and the cluster's Redis and S3."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.contender import listen, touch
from benchmarks.contenders.ours import remote, settings
from benchmarks.parts.works import load
from pipelines.streaming import Loading, Ordering, Stream
from storage.cache.hot.cache import HotCache, Timing
from storage.cache.node.cache import NodeCache
from storage.cache.tiered import Tiered


def make() -> Any:
    job = json.loads(sys.argv[1])
    work = load(job["work"], Path(job["data"]), job["tiny"], job)
    zone = remote(work)

    def epoch(number: int, folder: str, url: str, budget: int, ring: int) -> dict[str, Any]:
        """Read epoch `number` as rank `job["rank"]`: bytes by tier, and how many this node asked for."""
        node = NodeCache(Path(folder), job["node_bytes"], job["node_bytes"])  # all ring: what is open, nothing more
        hot = HotCache(url, budget, ring, timing=Timing(timeout=30))
        with Tiered(zone, node, hot) as tiers:
            with Stream(
                zone,
                zone.manifest(),
                rank=job["rank"],
                world=job["world"],
                epochs=number + 1,
                order=Ordering(lanes=job["lanes"], window=job["window"]),
                loading=Loading(tiers=tiers, ahead=job["node_bytes"] // 2),
                **settings(work),
            ) as stream:
                stream.set_epoch(number)
                touched = sum(touch(batch) for batch in stream)
            counters = tiers.counters()
        return {"touched": touched, **{name: counters[name].bytes for name in ("hot", "lake")}}

    return epoch


if __name__ == "__main__":
    listen(make)
