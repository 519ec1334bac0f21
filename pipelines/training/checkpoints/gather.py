"""Chunks of all ranks put together on rank 0, whatever the parallel layout."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.training.checkpoints.chunks import Chunk


def whole_tensors(chunks: Mapping[str, Chunk], group: Any) -> dict[str, Tensor]:
    """Name → the whole tensor, in host memory of its own, on rank 0; {} on the others. All ranks call it together.

    `group` is a gloo group of all ranks, None for a single one. A box that several ranks hold comes from the first.
    """
    mine = {name: (chunk.offsets, chunk.sizes, chunk.shape, chunk.data.dtype) for name, chunk in chunks.items()}
    boxes: list[Any] = [mine]
    rank = 0
    if group is not None:
        rank, boxes = dist.get_rank(group), [None] * dist.get_world_size(group)
        dist.all_gather_object(boxes, mine, group)
    whole: dict[str, Tensor] = {}
    for name in sorted({name for of_rank in boxes for name in of_rank}):
        taken: set[tuple[int, ...]] = set()
        for owner, of_rank in enumerate(boxes):
            if name not in of_rank or 0 in of_rank[name][1] or of_rank[name][0] in taken:
                continue
            offsets, sizes, shape, dtype = of_rank[name]
            taken.add(offsets)
            if rank == 0:
                box = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
                target = whole.setdefault(name, torch.empty(shape, dtype=dtype))[box]
                target.copy_(chunks[name].data if owner == 0 else _received(sizes, dtype, owner, group))
            elif rank == owner:
                dist.send(_bytes(chunks[name].data.cpu().contiguous()), group=group, group_dst=0)
    return whole


def _received(sizes: tuple[int, ...], dtype: torch.dtype, owner: int, group: Any) -> Tensor:
    found = torch.empty(sizes, dtype=dtype)
    dist.recv(_bytes(found), group=group, group_src=owner)
    return found


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
