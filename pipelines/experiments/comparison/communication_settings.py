"""The ways of train.communication that `shardline compare communication` tries, and what each is for."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Way:
    """`communication`: parameters of train.communication."""

    communication: dict[str, Any]
    why: str


def ways(steps: int, local_steps: int) -> dict[str, Way]:
    """By name, for a training of `steps` whose local copies meet every `local_steps`."""
    half = steps // 2 // local_steps * local_steps
    local = {"local_steps": local_steps}
    return {
        "all-reduce": Way({}, "the measure: every gradient, as it is"),
        "fp16": Way({"compression": "fp16"}, "half the bytes"),
        "bf16": Way({"compression": "bf16"}, "half the bytes, and float32's range"),
        "powersgd": Way({"compression": "powersgd"}, "thin factors of each matrix (arXiv:1905.13727)"),
        "local": Way(local, "local SGD (arXiv:1805.09767)"),
        "post-local": Way(local | {"local_after": half}, "local from the middle on (arXiv:1808.07217)"),
        "diloco": Way(
            local | {"outer_lr": 0.7, "outer_momentum": 0.9}, "an outer optimiser at meetings (arXiv:2311.08105)"
        ),
    }
