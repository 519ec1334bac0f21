"""Shardline's way from a loaded manifest of very many shards to the next index."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.contender import listen
from benchmarks.contenders.memory import peak
from pipelines.streaming import Order, Stream
from pipelines.streaming.arrays import int64
from storage.lake import Zone
from storage.manifest import Manifest

BATCH = 256
EPOCH = 3


def make() -> Callable[..., dict[str, float]]:
    job = json.loads(sys.argv[1])
    folder, way = Path(job["manifest"]), {"stream": _stream, "order": _order}[job["contender"]]
    begun = time.perf_counter()
    manifest = Manifest.load(folder)
    loaded = time.perf_counter() - begun

    def resume(share: float) -> dict[str, float]:
        """Seconds from the loaded manifest to the shards and rows of the batch at `share` of an epoch."""
        begun = time.perf_counter()
        samples = way(folder, manifest, share)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "peak": peak(), "loaded": loaded, "samples": samples}

    return resume


def _order(_: Path, manifest: Manifest, share: float) -> int:
    """By the order alone."""
    order = Order(int64(manifest.table["rows"]), batch=BATCH, seed=1)
    order.batch(EPOCH, int(order.steps * share))
    return order.rows


def _stream(folder: Path, manifest: Manifest, share: float) -> int:
    """By a stream that is given its state, and so makes sure that it is of this data: all that comes before a shard
    must be read."""
    stream = Stream(Zone(folder), manifest, split="train", batch_size=BATCH, seed=1)
    step = int(len(stream) * share)
    stream.load_state_dict({**stream.state_dict(), "epoch": EPOCH, "step": step})
    stream.order.batch(EPOCH, step)
    return stream.rows


if __name__ == "__main__":
    listen(make)
