"""The optimisers by name.

Every one keeps plain tensors by parameter: of the parameter's shape, or scalars (`step`, NAdam's `mu_product`, the line
searches' `count` and `progress`), which are the same under each parameter. So checkpoints address all of them by
parameter and slot, and reshard them.
"""

from pipelines.training.optimizers.build import build_optimizer, set_learning_rate
from pipelines.training.optimizers.descent import LineSearchOptimizer

__all__ = ["LineSearchOptimizer", "build_optimizer", "set_learning_rate"]
