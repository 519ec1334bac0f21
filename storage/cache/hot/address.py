"""Where Redis is, by URL:

    redis://[user:password@]host[:port][/db]             one server
    rediss://…                                           the same with TLS (?ssl_ca_certs=FILE, ?ssl_certfile=FILE, …)
    unix://[user:password@]/path/to.sock[?db=0]          a Unix socket
    redis+cluster://…host1:port1,host2:port2             a cluster, by some of its nodes; with TLS rediss+cluster://
    redis+sentinel://…host1:port1,host2:port2/service    the master that Sentinels name; with TLS rediss+sentinel://
                                                         (?sentinel_username=, ?sentinel_password= for themselves)

What follows `?` are redis-py's options of a connection. Passwords never appear in messages.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.redact import mask

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_READ_SIZE = 1 << 20  # bytes taken from a socket at once
Client = Any  # redis.Redis or redis.cluster.RedisCluster: both have the commands that are used


def check(url: str) -> str:
    """`url` if it is one of the forms above. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{mask(url)}: expected one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError(f"{mask(url)}: no path of a socket")
        return url
    if not _hosts(parts.netloc):
        raise ValueError(f"{mask(url)}: no host")
    if parts.scheme.endswith("+sentinel") and not parts.path.strip("/"):
        raise ValueError(f"{mask(url)}: no service; Sentinels need its name: …://host:26379/service")
    return url


def connect(url: str, timeout: float) -> tuple[Client, Callable[[], None]]:
    """A client of the Redis at `url`, whose every wait ends after `timeout` seconds, and what cuts its connections off
    from another thread. Nothing is tried twice. Raises redis-py's errors and OSError."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.connection import parse_url  # it, ClusterNode and Sentinel have no types
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    parse: Any = parse_url
    node: Any = ClusterNode
    sentinel: Any = Sentinel
    parts = urlsplit(check(url))
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_read_size": _READ_SIZE,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    scheme, _, form = parts.scheme.partition("+")
    if not form:
        client = Redis.from_url(url, **options)
        return client, lambda: client.connection_pool.disconnect(inuse_connections=True)

    login = parts.netloc.rpartition("@")[0]
    service, _, db = parts.path.strip("/").partition("/")
    plain = f"{scheme}://{login}{'@' if login else ''}localhost/{db}?{parts.query}"
    options |= {name: value for name, value in parse(plain).items() if name not in ("host", "connection_class")}
    options["ssl"] = scheme == "rediss"
    if form == "cluster":
        options.pop("db", None)
        nodes = [node(host, port) for host, port in _hosts(parts.netloc, 6379)]
        cluster = RedisCluster(startup_nodes=nodes, **options)
        return cluster, cluster.disconnect_connection_pools
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    asking = options | own | {"db": 0}
    master = sentinel(_hosts(parts.netloc, 26379), sentinel_kwargs=asking, **options).master_for(unquote(service))
    return master, lambda: master.connection_pool.disconnect(inuse_connections=True)


def _hosts(netloc: str, port: int = 0) -> list[tuple[str, int]]:
    """[(host, port)] of `user:password@host1:port1,host2`."""
    found = []
    for place in filter(None, netloc.rpartition("@")[2].split(",")):
        match = re.fullmatch(r"(\[[^\]]+\]|[^:]*)(?::(\d+))?", place)
        if match and match[1]:
            found.append((match[1].strip("[]"), int(match[2] or port)))
    return found
