"""Shardline's way from a loaded manifest of very many shards to the next index."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.contender import listen
from benchmarks.contenders.memory import peak
from pipelines.streaming import Order
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
        rows = np.from_dlpack(pa.concat_arrays(manifest.table["rows"].chunks))  # to_numpy would import pandas
        order = Order(rows, batch=BATCH, seed=1)
        order.batch(EPOCH, int(order.steps * share))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "peak": peak(), "loaded": loaded, "samples": order.rows}

    return resume


if __name__ == "__main__":
    listen(make)
