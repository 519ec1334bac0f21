"""The limit of a hot read: the parts of all shards by plain pipelined GETs of redis-py; and beside it the same straight
into memory that is used again, as Shardline reads them. The job's `keys`, of `sizes` bytes, are read from `url`;
`workers` says by how many threads, each with a connection."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import Work
from storage.cache.hot.receive import get_into

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


def straight(work: Work) -> Epoch:
    """The same into a buffer of each thread's own."""
    parts = list(zip(work.job["keys"], work.job["sizes"], strict=True))
    some = [parts[start : start + PIPELINED] for start in range(0, len(parts), PIPELINED)]
    clients, own = redis.Redis.from_url(work.job["url"]), threading.local()

    def read(part: Sequence[tuple[str, int]]) -> list[memoryview]:
        own.buffers = buffers = getattr(own, "buffers", None) or [memoryview(bytearray(1 << 20)) for _ in some[0]]
        places = [buffer[:size] for buffer, (_, size) in zip(buffers, part, strict=False)]
        if not all(get_into(clients, [key for key, _ in part], places)):
            raise RuntimeError("a part is missing in Redis")
        return places

    def epoch(threads: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(threads) as pool:
            for values in pool.map(read, some):
                yield {"values": values}

    return epoch


if __name__ == "__main__":
    serve({"pipelined": pipelined, "straight": straight})
