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
    """Of the data stages. None: one for each core."""
    ray: str | None = None
    """The Ray cluster, for engine and launcher ray: its address (HOST:PORT, ray://…, auto). ${NAME} stands for that
    environment variable. None: one of this machine, made for the command and ended with it."""
    lake_timeout: float = Field(60.0, gt=0, le=3600)
    """Seconds without progress, retries included, after which reading from a remote lake or writing to it fails."""
    prefetch: int = Field(2, ge=0, le=64)
    """Batches prepared ahead."""
    ahead_mb: float = Field(256.0, ge=0)
    """MiB of shards fetched ahead of need, where they aren't on this machine."""
    memory_mb: float = Field(4096.0, gt=0)
    """MiB of shards held in memory, give or take three shards, where no tier keeps them as files on this machine."""


class NodeCache(Section):
    """Shards as files on this machine's disk, shared by its processes."""

    enabled: bool | None = None
    """None: where the shards zone is remote."""
    folder: str = ".shardline/cache"
    """On a disk of this machine; relative to the project. ${NAME} stands for that environment variable."""
    budget_mb: float | None = Field(None, gt=0)
    """MiB that it may hold. None: half of what is free, and what it holds."""
    ring_mb: float | None = Field(None, ge=0)
    """MiB of these for shards that are replaced first in, first out. None: 1/64, for small budgets up to 1/8."""


class HotCache(Section):
    """Shards in Redis (7 or newer, or Valkey) for the whole cluster."""

    url: str | None = None
    """redis://, rediss://, unix://, redis+cluster://, redis+sentinel://… (docs/cache.md), or embedded: a Valkey of this
    machine that ends with its users. ${NAME} stands for that environment variable. None: off."""
    budget_mb: float = Field(1024, gt=0)
    """MiB of shards; Redis' maxmemory should be 1.3 times that."""
    ring_mb: float | None = Field(None, ge=0)
    """As of the node cache."""
    timeout_ms: int = Field(500, ge=1, le=60_000)
    """After which an exchange with Redis counts as failed, and the lake is read instead."""
    wait_s: float = Field(60.0, gt=0, le=3600)
    """How long to wait for another process' fetch of a shard; in the node cache, for its index too."""
    lease_s: float = Field(5.0, ge=0.5, le=600)
    """How long the others wait for a process that died while it fetched."""
    prefix: str = Field("shardline", pattern=NAME)
    """Of all keys."""


class Cache(Section):
    """What lies between the lake and the stream. Nothing here changes a result, so no stage depends on it."""

    node: NodeCache = NodeCache()
    """Shards on this machine's disk."""
    hot: HotCache = HotCache()
    """Shards in Redis."""
    idle_hours: float = Field(24.0, gt=0)
    """A shard that nobody has read for so long may give its place to another."""
