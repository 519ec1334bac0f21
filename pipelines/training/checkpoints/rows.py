"""What each copy of a model has for itself, in a checkpoint: a tensor with a row for each copy in front.

It must be something of which only the mean over the copies matters but for rounding. Read back by another number of
copies, the rows are shared out among them, and scaled so that the mean stays what it was. On the same number each copy
gets its own row, to the bit.
"""

import torch
from torch import Tensor

from pipelines.training.checkpoints.chunks import Chunk


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
