"""Arithmetic of vectors that are a tensor for each parameter; of a sharded parameter, this rank's shard."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

Vector = list[Tensor]


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor (a DTensor), sharing its memory; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    shard: Tensor = tensor.detach() if to_local is None else tensor.detach().to_local()  # type: ignore[attr-defined]
    return shard


def copies(vector: Sequence[Tensor]) -> Vector:
    return [part.detach().clone() for part in vector]


def scale(vector: Sequence[Tensor], factor: float) -> Vector:
    """A new vector."""
    return list(torch._foreach_mul(list(vector), factor))


def add(vector: Vector, factor: float, other: Sequence[Tensor]) -> Vector:
    """vector + factor · other, in place."""
    torch._foreach_add_(vector, list(other), alpha=factor)
    return vector


def inner(parameters: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The inner product of two vectors over `parameters`, the same on every rank; products in the tensors' type, their
    sum in float64. One all-reduce for each way in which parameters are sharded."""
    products: dict[object, list[Tensor]] = defaultdict(list)
    example: dict[object, Tensor] = {}
    for p, x, y in zip(parameters, a, b, strict=True):
        way = (getattr(p, "device_mesh", None), getattr(p, "placements", None))
        example[way] = p
        products[way].append(torch.dot(x.reshape(-1), y.reshape(-1)))
    wide = torch.float32 if parameters[0].device.type == "mps" else torch.float64
    return sum(_over_shards(example[way], torch.stack(parts).sum(dtype=wide)) for way, parts in products.items())


def _over_shards(parameter: Tensor, mine: Tensor) -> float:
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return float(mine)
    from torch.distributed.tensor import DTensor, Partial, Replicate

    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return float(DTensor.from_local(mine, parameter.device_mesh, kinds).full_tensor())  # type: ignore[attr-defined]
