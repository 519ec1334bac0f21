"""The whole model's weights, out of whichever pieces the ranks hold."""

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from pipelines.training.parallelism.layout import Layout


def full_weights(model: nn.Module, layout: Layout, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """The plain model's state on rank 0, on the CPU; nothing on the others. All ranks call it together."""
    mine: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if layout.data_rank == 0 and layout.place("tensor") == 0:
            mine[name] = whole.detach().cpu().clone().contiguous()
    stages = layout.size("pipeline")
    if stages == 1 or mesh is None:
        return mine if layout.rank == 0 else {}
    if not (layout.data_rank == 0 and layout.place("tensor") == 0):
        return {}
    boxes: list[dict[str, Tensor]] = [{}] * stages
    dist.gather_object(mine, boxes if layout.rank == 0 else None, dst=0, group=mesh["pipeline"].get_group())
    if layout.rank != 0:
        return {}
    return {name: tensor for box in boxes for name, tensor in box.items()}
