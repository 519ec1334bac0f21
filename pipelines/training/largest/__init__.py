"""`shardline find batch`: the largest batch that a device holds, and how fast each size is."""

from pipelines.training.largest.search import find_batch

__all__ = ["find_batch"]
