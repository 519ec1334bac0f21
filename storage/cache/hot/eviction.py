"""A Redis that evicts: when it is full it drops parts on which the hot cache's index relies."""

import logging

from redis.exceptions import ResponseError

from storage.cache.hot.address import Client

_log = logging.getLogger(__name__)


def warn_of_eviction(client: Client, name: str) -> None:
    """Warn where the server's `maxmemory-policy` (of a cluster, one node's) isn't `noeviction`; say nothing where it
    doesn't tell: an ACL without +info, say. One exchange. Raises redis-py's other errors and OSError."""
    try:
        policy = client.info("memory").get("maxmemory_policy")
    except ResponseError:
        return
    if policy not in (None, "noeviction"):
        _log.warning(
            "%s: its maxmemory-policy is %s: when it is full it drops parts of shards that the index counts on, and "
            "the lake is read again for them. Set `maxmemory-policy noeviction` on the server.",
            name, policy,
        )  # fmt: skip
