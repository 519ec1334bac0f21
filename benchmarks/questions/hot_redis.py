"""The blobs from Redis, with an empty node cache and a lake that nobody may ask.

The limit is plain pipelined reads of the same parts by the same client, by one, two or four threads. An epoch is timed
to its last batch; "until closed" counts the writing of the node cache's files behind it as well.
"""

import redis as client

from benchmarks.contenders.ours import remote
from benchmarks.outcome import Bar, Outcome
from benchmarks.questions.once import epochs
from benchmarks.rounds import Entrant, started
from benchmarks.servers import BUCKET, redis, s3
from benchmarks.setting import Setting
from benchmarks.works import load

MB = 1e6


def ask(setting: Setting) -> Outcome:
    with s3(setting) as env:
        job = {"lake": f"s3://{BUCKET}/blobs-{'tiny' if setting.tiny else 'all'}"}
        work = load("blobs", setting.data, setting.tiny, job)
        budget = 2 * sum(record["bytes"] for record in remote(work).manifest().records())
        with redis(budget) as url:
            ours = Entrant("Shardline", "ours", "hot", job={**job, "url": url, "budget": budget}, env=env)
            with started([ours], "blobs", setting) as processes:
                processes["Shardline"].ask(run="once", workers=0)  # which fills Redis
                keys, nbytes = _parts(url)
            plain = Entrant("plain GETs", "plain_redis", "pipelined", (1, 2, 4), {"url": url, "keys": keys})
            found = epochs([plain, ours], "blobs", setting)
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
    mine, limit = speed["Shardline"], speed["plain GETs"]
    bars = [Bar("× plain pipelined reads", 0.7, mine / limit)]
    more = {"bytes": nbytes, "parts": len(keys), "threads_of_the_limit": found["plain GETs"].workers}
    return Outcome("hot-redis", "MB/s", mine, {}, limit, bars, ["", "MB/s", "spread", "until closed"], table, more)


def _parts(url: str) -> tuple[list[str], int]:
    """The keys of all parts in Redis, and their bytes."""
    with client.Redis.from_url(url) as redis_client:
        keys = sorted(key.decode() for key in redis_client.scan_iter("shardline:part:*", count=1000))
        with redis_client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.strlen(key)
            return keys, sum(pipeline.execute())
