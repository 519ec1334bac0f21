"""`shardline compare`: the same recipe trained in several ways, side by side, beside its outs."""

from pipelines.training.comparison.optimizers import compare_optimizers

__all__ = ["compare_optimizers"]
