"""torch's device mesh of a layout."""

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pipelines.training.parallelism.layout import DIMENSIONS, Layout


def make_mesh(layout: Layout, device: torch.device) -> DeviceMesh | None:
    """The mesh of all ranks, made by all of them together; None for one rank."""
    if layout.world == 1:
        return None
    return init_device_mesh(device.type, layout.sizes, mesh_dim_names=DIMENSIONS)
