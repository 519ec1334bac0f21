"""What the peers do between a loaded index and the next sample, by the functions that their datasets call.

MDS: partitions and the py1e shuffle of all samples, which `StreamingDataset` makes anew at each start; its memory goes
by samples, so it gets a hundredth of them. litdata: all chunks shuffled and dealt out to the workers; finding the place
inside an epoch comes on top. Grain: its index shuffle, which is arithmetic on the index of a sample, over any number of
samples at random places of the store.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contender import listen
from benchmarks.contenders.memory import peak

BATCH = 256


def mds(samples: int, shards: int) -> Callable[[float], Any]:
    import numpy as np
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    sizes = np.full(shards, samples // shards)

    def resume(share: float) -> Any:
        place = int(samples // BATCH * share) * BATCH
        ids = get_partitions("relaxed", samples, 64, 1, 1, 1, BATCH, place, 1)
        shuffled = get_shuffle("py1e", sizes, 64, 9176, 3, 1 << 18)
        return np.where(ids != -1, shuffled[ids], -1).reshape(-1)[:BATCH]

    return resume


def litdata(samples: int, shards: int) -> Callable[[float], Any]:
    import numpy as np
    from litdata.utilities.env import _DistributedEnv
    from litdata.utilities.shuffle import Interval, _associate_chunks_and_intervals_to_workers

    rows = samples // shards
    intervals = [
        Interval(shard * rows, shard * rows, (shard + 1) * rows, (shard + 1) * rows) for shard in range(shards)
    ]

    def resume(_: float) -> Any:
        chunks = np.random.RandomState([1, 3]).permutation(range(shards))
        shuffled = np.asarray(intervals)[chunks].tolist()
        return _associate_chunks_and_intervals_to_workers(_DistributedEnv(1, 0, 1), chunks, shuffled, False, 1, BATCH)

    return resume


def grain(samples: int, _: int) -> Callable[[float], Any]:
    import grain

    def resume(share: float) -> Any:
        dataset = grain.MapDataset.range(samples).shuffle(seed=1)
        first = int(samples // BATCH * share) * BATCH
        return [dataset[index] for index in range(first, first + BATCH)]

    return resume


def make() -> Callable[..., dict[str, float]]:
    job = json.loads(sys.argv[1])
    ask = {"mds": mds, "litdata": litdata, "grain": grain}[job["contender"]](job["samples"], job["shards"])

    def resume(share: float) -> dict[str, float]:
        begun = time.perf_counter()
        ask(share)
        return {"seconds": time.perf_counter() - begun, "peak": peak()}

    return resume


if __name__ == "__main__":
    listen(make)
