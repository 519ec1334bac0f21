"""The limit of a hot read: the parts of all shards by plain pipelined GETs, with the client that Shardline uses. The
job's `keys` are read from `url`; `workers` says by how many threads, each with a connection."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.works import Work

PIPELINED = 16  # GETs of 1 MiB sent together


def pipelined(work: Work) -> Epoch:
    """Threads that take the next PIPELINED keys, read them, and let go of what came."""
    keys = [key.encode() for key in work.job["keys"]]
    some = [keys[start : start + PIPELINED] for start in range(0, len(keys), PIPELINED)]
    clients = redis.Redis.from_url(work.job["url"])

    def read(part: list[bytes]) -> list[Any]:
        with clients.pipeline(transaction=False) as pipeline:
            for key in part:
                pipeline.get(key)
            found: list[Any] = pipeline.execute()
            return found

    def epoch(threads: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(threads) as pool:
            for values in pool.map(read, some):
                if None in values:
                    raise RuntimeError("a part is missing in Redis")
                yield {"values": values}

    return epoch


if __name__ == "__main__":
    serve({"pipelined": pipelined})
