"""One node's stream through its own node cache and a shared Redis, in a process: `python stream_reader.py '{…}'`.

Prints one JSON line: the labels of each batch, what came from which tier, and by how many bytes the process grew.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipelines.streaming import Stream
from storage.cache import HotCache, NodeCache, Tiered
from storage.lake import Zone

MIB = 1 << 20


def read(job: dict[str, Any]) -> dict[str, Any]:
    zone = Zone(Path(job["folder"]), job["url"])
    node = NodeCache(Path(job["node"]), job["budget"], timeout=60) if job.get("node") else None
    hot = HotCache(job["hot"], job["budget"], timeout=10) if job.get("hot") else None
    before = peak()
    with Tiered(zone, node, hot) as tiers, Stream(zone, zone.manifest(), tiers=tiers, **job["settings"]) as stream:
        batches = [batch["label"].tolist() for batch in stream]
    return {
        "batches": batches,
        "counters": {name: tier.as_dict() for name, tier in tiers.counters().items()},
        "grown": peak() - before,
    }


def peak() -> int:
    """The most bytes that this process has had in memory (since its exec; getrusage's are its parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(read(json.loads(sys.argv[1]))))
