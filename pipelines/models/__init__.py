"""Models: what a recipe can train, by name or import path, and what their outputs mean.

What needs torch is imported when it is first asked for: the parameters in `members` are read without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.models.importing import Own
    from pipelines.models.losses import with_loss
    from pipelines.models.registry import build_model, data_facts
    from pipelines.models.saved import ModelConfig, load_model, save_model
    from pipelines.models.tasks import Task, task_of

__all__ = [
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

_LIES_IN = {
    "importing": ("Own",),
    "losses": ("with_loss",),
    "registry": ("build_model", "data_facts"),
    "saved": ("ModelConfig", "load_model", "save_model"),
    "tasks": ("Task", "task_of"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LIES_IN.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
