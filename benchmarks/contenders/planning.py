"""Shardline's way from a loaded manifest of very many shards to the next index."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.contender import listen
from benchmarks.contenders.memory import peak
from pipelines.streaming import Order
from pipelines.streaming.arrays import int64
from storage.manifest import Manifest

BATCH = 256
EPOCH = 3


def make() -> Callable[..., dict[str, float]]:
    folder = json.loads(sys.argv[1])["manifest"]
    begun = time.perf_counter()
    manifest = Manifest.load(Path(folder))
    loaded = time.perf_counter() - begun

    def resume(share: float) -> dict[str, float]:
        """Seconds from the loaded manifest to the shards and rows of the batch at `share` of an epoch."""
        begun = time.perf_counter()
        order = Order(int64(manifest.table["rows"]), batch=BATCH, seed=1)
        order.batch(EPOCH, int(order.steps * share))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "peak": peak(), "loaded": loaded, "samples": order.rows}

    return resume


if __name__ == "__main__":
    listen(make)
