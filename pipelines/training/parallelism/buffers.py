"""Buffers that change, such as batch norm's averages: each rank makes its own, and those of the first rank count."""

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipelines.training.parallelism.gradients import held


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of the state, by name."""
    state = model.state_dict()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in state)


def share_buffers(model: nn.Module, mesh: DeviceMesh | None) -> None:
    """Give all parts of the batch the buffers of the first, so that they measure one model: the one that is saved. All
    ranks call it together."""
    if mesh is None:
        return
    for dimension in ("shard", "data"):
        group = mesh[dimension].get_group()
        if group.size() > 1:
            for _, buffer in persistent_buffers(model):
                dist.broadcast(held(buffer), group=group, group_src=0)
