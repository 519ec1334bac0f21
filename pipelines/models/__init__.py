"""Models: what a recipe can train, by name or import path, and what their outputs mean."""

from pipelines.models.importing import Own
from pipelines.models.losses import with_loss
from pipelines.models.registry import MODELS, build_model, data_facts
from pipelines.models.saved import ModelConfig, load_model, save_model
from pipelines.models.tasks import Task, task_of

__all__ = [
    "MODELS",
    "ModelConfig",
    "Own",
    "Task",
    "build_model",
    "data_facts",
    "load_model",
    "save_model",
    "task_of",
    "with_loss",
]
