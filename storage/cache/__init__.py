"""Caches between the lake and the stream: the node's disk, and Redis for the whole cluster."""

from storage.cache.counters import Counters
from storage.cache.hot.cache import HotCache, Timing
from storage.cache.node.cache import NodeCache
from storage.cache.tiered import Tiered

__all__ = ["Counters", "HotCache", "NodeCache", "Tiered", "Timing"]
