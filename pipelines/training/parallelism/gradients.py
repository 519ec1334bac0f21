"""The norm of a gradient whose pieces lie on many ranks."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from pipelines.training.parallelism.group import Group
from pipelines.training.parallelism.layout import Layout


def clip_(
    parameters: Iterable[Tensor],
    limit: float | None,
    group: Group,
    shared: Iterable[Tensor] = (),
    *,
    value: float | None = None,
) -> Tensor:
    """Cut each element of the gradients off at ±`value`, then scale them down to a norm of `limit` over all shards,
    slices and stages. Returns the norm before both."""
    parameters = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    twice = {id(p) for p in shared}

    def measured() -> Tensor:
        if group.layout.world == group.layout.size("data"):  # the same gradients on every rank
            return nn.utils.get_total_norm(gradients)
        return global_norm(gradients, [2 if id(p) in twice else 1 for p in parameters], group)

    norm = inside = measured()
    if value is not None:
        for gradient in gradients:
            held(gradient).clamp_(-value, value)
        inside = measured() if limit is not None else norm
    if limit is not None:
        factor = (limit / (inside + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        pieces = [held(g) for g in gradients]
        torch._foreach_mul_(pieces, factor.to(pieces[0].device))
    return norm


def global_norm(gradients: list[Tensor], holders: list[int], group: Group) -> Tensor:
    """√ of the sum of squares over all ranks' pieces, in one all-reduce; a piece that n ranks hold counts 1/n each.

    holders: stages that hold the parameter.
    """
    norms = torch.stack(torch._foreach_norm([held(g) for g in gradients])).double()
    counts = [copies(g, group.layout) * h for g, h in zip(gradients, holders, strict=True)]
    mine = (norms**2 / torch.tensor(counts, device=norms.device)).sum()
    return torch.tensor(group.sum(mine)[0] ** 0.5, dtype=torch.float32)


def copies(tensor: Tensor, layout: Layout) -> int:
    """How many ranks of a stage hold the same piece of it."""
    stage = layout.world // layout.size("pipeline")
    if not isinstance(tensor, DTensor):
        return stage
    cut = 1
    for dimension, placement in enumerate(tensor.placements):
        if not placement.is_replicate():  # also strided ones, where shards are cut out of slices
            cut *= tensor.device_mesh.size(dimension)
    return stage // cut


def held(tensor: Tensor) -> Tensor:
    """This rank's piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
