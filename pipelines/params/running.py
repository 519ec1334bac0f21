"""How and through what the stages run: compute, cache. Nothing here changes a result."""

from typing import Literal

from pydantic import Field

from pipelines.params.schema.section import NAME, Section
from pipelines.params.train.launching import Launching


class Compute(Launching):
    """How the stages run. Nothing here changes a result, so no stage depends on it."""

    engine: Literal["auto", "threads", "processes", "ray"] = "auto"
    """What the data stages run on. auto: threads for little data, processes for much. ray: tasks of a Ray cluster."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Threads or processes of the data stages. None: one per core."""
    ray: str | None = None
    """Address of the Ray cluster that engine: ray and launcher: ray use (HOST:PORT, ray://…, auto). ${NAME} is replaced
    from the environment. None: a cluster of this machine, started for the command and ended with it."""
    lake_timeout: float = Field(60.0, gt=0, le=3600)
    """Seconds without progress, retries included, after which a read from a remote lake or a write to it fails."""
    prefetch: int = Field(2, ge=0, le=64)
    """Batches that are prepared ahead of the training, in a thread. 0: no thread."""
    ahead_mb: float = Field(256.0, ge=0)
    """MiB of shards that are fetched before they are needed, where they aren't on this machine."""
    memory_mb: float = Field(4096.0, gt=0)
    """MiB of shards held in memory, give or take three shards, where neither the lake nor a cache keeps them as files
    on this machine."""


class NodeCache(Section):
    """Shards as files on this machine's disk, shared by its processes."""

    enabled: bool | None = None
    """Whether shards are cached on this machine's disk. None: where the shards zone is remote."""
    folder: str = ".shardline/cache"
    """Folder of the node cache, on a disk of this machine; relative to the project. ${NAME} is replaced from the
    environment."""
    budget_mb: float | None = Field(None, gt=0)
    """MiB that the node cache may hold. None: half of the sum of the disk's free space and what the cache holds
    already."""
    ring_mb: float | None = Field(None, ge=0)
    """MiB of the node cache's budget for its ring: shards that don't fit beside the pinned ones, replaced first in,
    first out. None: 1/64 of the budget, of small budgets up to 1/8."""


class HotCache(Section):
    """Shards in Redis (7 or newer, or Valkey) for the whole cluster."""

    url: str | None = None
    """Redis or Valkey server of the hot cache: redis://, rediss://, unix://, redis+cluster://, redis+sentinel://…
    (docs/cache.md), or embedded, a Valkey of this machine that ends with its last user. ${NAME} is replaced from the
    environment. None: no hot cache."""
    budget_mb: float = Field(1024, gt=0)
    """MiB of shards in the hot cache, all nodes together; set Redis' maxmemory to 1.3 times this."""
    ring_mb: float | None = Field(None, ge=0)
    """MiB of the hot cache's budget for its ring: shards that don't fit beside the pinned ones, replaced first in,
    first out. None: 1/64 of the budget, of small budgets up to 1/8."""
    timeout_ms: int = Field(500, ge=1, le=60_000)
    """Milliseconds after which a request to Redis counts as failed, and the lake is read instead."""
    wait_s: float = Field(60.0, gt=0, le=3600)
    """Seconds to wait for a shard that another process is fetching (or, in the node cache, for the lock of its index)
    before fetching it oneself."""
    lease_s: float = Field(5.0, ge=0.5, le=600)
    """Seconds after which the lease of a process that died while it fetched a shard expires, and another process
    fetches it."""
    prefix: str = Field("shardline", pattern=NAME)
    """First part of every key in Redis, to tell several projects on one server apart."""


class Cache(Section):
    """What lies between the lake and the stream. Nothing here changes a result, so no stage depends on it."""

    node: NodeCache = NodeCache()
    """Shards on this machine's disk."""
    hot: HotCache = HotCache()
    """Shards in Redis."""
    idle_hours: float = Field(24.0, gt=0)
    """Hours after which a shard that nobody has read may be replaced by another one."""
