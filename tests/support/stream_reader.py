"""One node's stream through its own node cache and a shared Redis, in a process: `python stream_reader.py '{…}'`.

Prints one JSON line: the labels of each batch, what came from which tier, and by how many bytes the process grew.
"""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.flat_streams import flat_stream

from storage.cache import HotCache, NodeCache, Tiered, Timing
from storage.lake import Zone

MIB = 1 << 20


def read(job: dict[str, Any]) -> dict[str, Any]:
    zone = Zone(Path(job["folder"]), job["url"])
    node = NodeCache(Path(job["node"]), job["budget"], timeout=60) if job.get("node") else None
    hot = (
        HotCache(job["hot"], job["budget"], timing=Timing(timeout=10, lease=job.get("lease", 5)))
        if job.get("hot")
        else None
    )
    before = peak()
    with Tiered(zone, node, hot) as tiers, flat_stream(zone, zone.manifest(), tiers=tiers, **job["settings"]) as stream:
        batches = [batch["label"].tolist() for batch in stream]
    return {
        "batches": batches,
        "counters": {name: tier.as_dict() for name, tier in tiers.counters().items()},
        "grown": peak() - before,
    }


def start(job: dict[str, Any], env: dict[str, str]) -> "subprocess.Popen[str]":
    """A process that reads."""
    return subprocess.Popen([sys.executable, __file__, json.dumps(job)], env=env, stdout=subprocess.PIPE, text=True)


def read_all(jobs: list[dict[str, Any]], env: dict[str, str], seconds: float = 120) -> list[dict[str, Any]]:
    """What a process for each job prints, side by side, within so many seconds. None outlives it."""
    with ExitStack() as stack:
        processes = []
        for job in jobs:
            processes.append(stack.enter_context(start(job, env)))
            stack.callback(processes[-1].kill)
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(jobs)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def peak() -> int:
    """The most bytes that this process has had in memory (since its exec; getrusage's are its parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in its background ignore it
    print(json.dumps(read(json.loads(sys.argv[1]))))
