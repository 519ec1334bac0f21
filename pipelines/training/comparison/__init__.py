"""`shardline compare`: the same recipe trained in several ways, side by side, beside its outs."""

from pipelines.training.comparison.optimizers import compare_optimizers
from pipelines.training.comparison.schedules import compare_schedules

__all__ = ["compare_optimizers", "compare_schedules"]
