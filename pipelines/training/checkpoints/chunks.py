"""Chunks: what a rank holds of a tensor, in any parallel layout; and their bytes as NumPy arrays.

torch.distributed.checkpoint plans saving and loading over objects that say which box of which tensor they are
(`torch.distributed._checkpoint_protocols`' methods `__create_write_items__` and `__create_chunk_list__`): DTensors do,
and so do chunks. A chunk needs no device mesh, so it can lie in host memory while its tensor trains on.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
    from torch.distributed.checkpoint.planner import WriteItem

_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; NumPy knows no bfloat16


@dataclass(frozen=True, eq=False)
class Chunk:
    """The box `data` (any device) whose first corner is at `offsets` in a tensor of `shape`."""

    data: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Chunk":
        """What this rank holds of `tensor`: all of it, or a DTensor's local part (which may be empty). No copy."""
        tensor = tensor.detach()
        mesh: Any = getattr(tensor, "device_mesh", None)
        if mesh is None:
            return cls(tensor, (0,) * tensor.ndim, tuple(tensor.shape))
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        distributed: Any = tensor
        _, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, distributed.placements)
        return cls(distributed.to_local(), tuple(offsets), tuple(tensor.shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def holding(self, data: Tensor) -> "Chunk":
        """The same box with other data."""
        return Chunk(data, self.offsets, self.shape)

    def size(self) -> torch.Size:
        """Of the whole tensor, as torch's planner asks for it."""
        return torch.Size(self.shape)

    def __create_chunk_list__(self) -> "list[ChunkStorageMetadata]":
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        if 0 in self.sizes:
            return []
        return [ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.sizes))]

    def __create_write_items__(self, name: str, _: Any) -> "list[WriteItem]":
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        about = TensorProperties(dtype=self.data.dtype)
        return [
            WriteItem(
                MetadataIndex(name, box.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(box, about, self.size()),
            )
            for box in self.__create_chunk_list__()
        ]


def raw(tensor: Tensor) -> npt.NDArray[Any]:
    """A CPU tensor's memory as integers of the same width and shape: no copy, and NumPy copies outside the GIL."""
    width = _SAME_WIDTH.get(tensor.element_size())
    if width is None:
        raise TypeError(f"{tensor.dtype}: a checkpoint holds elements of 1, 2, 4 or 8 bytes")
    array: npt.NDArray[Any] = tensor.detach().view(width).numpy()
    return array


def raw_type(dtype: torch.dtype) -> np.dtype[Any]:
    """What `raw` gives for tensors of `dtype`."""
    return raw(torch.empty((), dtype=dtype)).dtype


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy into a CPU tensor; on the CPU in one thread, which leaves the others and the GIL to the training step."""
    if source.device.type == "cpu" and source.dtype is target.dtype:
        np.copyto(raw(target), raw(source))
    else:
        target.copy_(source, non_blocking=target.is_pinned())


def volume(chunk: Chunk) -> int:
    """Bytes."""
    return prod(chunk.sizes) * chunk.data.element_size()


def row(tensor: Tensor, copy: int, copies: int) -> Chunk:
    """`tensor` as the row of `copy` (from 0) of `copies`. No copy of its data."""
    return Chunk(tensor.detach()[None], (copy, *(0,) * tensor.ndim), (copies, *tensor.shape))


def rows_for(shape: tuple[int, ...], dtype: torch.dtype, copy: int, copies: int) -> Chunk:
    """An empty chunk for the rows that `copy` of `copies` takes of a saved tensor of `shape`: each row goes to one."""
    rows = shape[0]
    first, end = rows * copy // copies, rows * (copy + 1) // copies
    data = torch.empty((end - first, *shape[1:]), dtype=dtype)
    return Chunk(data, (first, *(0,) * len(shape[1:])), shape)


def taken(chunk: Chunk, copies: int) -> Tensor:
    """What one of `copies` makes of its rows."""
    if copies == chunk.shape[0]:
        return chunk.data[0]
    return chunk.data.sum(0) * (copies / chunk.shape[0])
