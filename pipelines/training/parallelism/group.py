"""One rank among the others of its training."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pipelines.training.parallelism.layout import Layout
from pipelines.training.process.process_group import Ranks


@dataclass(frozen=True, kw_only=True)
class Group:
    """Which ranks train together, where this one stands in their layout, and what it computes on."""

    ranks: Ranks
    layout: Layout
    device: torch.device
    mesh: DeviceMesh | None = None
    hosts: Any = None
    """The group in which hosts count targets: see `Ranks.host_group`."""

    def sum(self, *values: float | Tensor) -> list[float]:
        """Sums over all ranks, which all call it."""
        return self.ranks.sum(*values, device=self.device)
