"""The optimisers by name, what they do to gradients, and their state as named tensors."""

from pipelines.training.optimizers.build import build_optimizer, set_learning_rate
from pipelines.training.optimizers.descent import LineSearchOptimizer
from pipelines.training.optimizers.gradients import clip
from pipelines.training.optimizers.state import load_optimizer_tensors, optimizer_tensors

__all__ = [
    "LineSearchOptimizer",
    "build_optimizer",
    "clip",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "set_learning_rate",
]
