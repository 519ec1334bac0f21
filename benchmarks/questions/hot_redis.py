"""The blobs from Redis, with an empty node cache and a lake that nobody may ask.

The limit is plain pipelined reads of the same parts by redis-py, by one, two or four threads. Beside it what Redis and
this machine can do at all: the same straight into memory that stays in the processor's cache, with nothing checked. An
epoch is timed to its last batch; "until closed" counts the writing of the node cache's files behind it as well.
"""

import redis as client

from benchmarks.contenders.ours import remote
from benchmarks.once import epochs
from benchmarks.outcome import Bar, Outcome
from benchmarks.parts.servers import BUCKET, redis, s3
from benchmarks.parts.works import load
from benchmarks.rounds import Entrant, started
from benchmarks.setting import Setting

MB = 1e6
PLAIN = {"plain GETs": "pipelined", "plain GETs, straight into memory": "straight"}


def ask(setting: Setting) -> Outcome:
    with s3(setting) as env:
        job = {"lake": f"s3://{BUCKET}/blobs-{'tiny' if setting.tiny else 'all'}"}
        work = load("blobs", setting.data, setting.tiny, job)
        budget = 2 * sum(record["bytes"] for record in remote(work).manifest().records())
        with redis(budget) as url:
            ours = Entrant("Shardline", "ours", "hot", job={**job, "url": url, "budget": budget}, env=env)
            with started([ours], "blobs", setting) as processes:
                processes["Shardline"].ask(run="once", workers=0)  # which fills Redis
                parts = _parts(url)
            reads = {"url": url, "keys": list(parts), "sizes": list(parts.values())}
            plain = [Entrant(name, "plain_redis", way, (1, 2, 4), reads) for name, way in PLAIN.items()]
            found = epochs([*plain, ours], "blobs", setting)
    nbytes = sum(parts.values())
    speed = {name: nbytes / seen.seconds / MB for name, seen in found.items()}
    table = [
        [
            f"{name}, {seen.workers} threads" if seen.workers else name,
            f"{speed[name]:,.0f}",
            f"{nbytes / max(seen.all_seconds) / MB:,.0f} – {nbytes / min(seen.all_seconds) / MB:,.0f}",
            f"{nbytes / seen.ended / MB:,.0f}",
        ]
        for name, seen in found.items()
    ]
    mine, (limit, straight) = speed["Shardline"], (speed[name] for name in PLAIN)
    bars = [Bar("× plain pipelined reads", 0.7, mine / limit)]
    threads = found["plain GETs"].workers
    more = {"bytes": nbytes, "parts": len(parts), "threads_of_the_limit": threads, "straight_into_memory": straight}
    return Outcome("hot-redis", "MB/s", mine, {}, limit, bars, ["", "MB/s", "spread", "until closed"], table, more)


def _parts(url: str) -> dict[str, int]:
    """The keys of all parts in Redis, and the bytes of each."""
    with client.Redis.from_url(url) as redis_client:
        keys = sorted(key.decode() for key in redis_client.scan_iter("shardline:part:*", count=1000))
        with redis_client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.strlen(key)
            return dict(zip(keys, pipeline.execute(), strict=True))
