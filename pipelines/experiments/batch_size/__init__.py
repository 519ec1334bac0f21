"""`shardline find batch`: the largest batch that a device holds, and how fast each size is."""

from pipelines.experiments.batch_size.finder import find_batch

__all__ = ["find_batch"]
