"""A vision transformer: a picture as a sequence of patches."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.models.architectures.scaling import Rescale, Standardise
from pipelines.models.architectures.transformer import Block


class ViT(nn.Module):
    """x [B, height, width, channels] as stored (uint8) → logits [B, num_classes], or values [B] for a regression.

    Dosovitskiy et al. 2020 (arXiv:2010.11929) with the blocks of our transformer (RMSNorm, SwiGLU), without mask or
    rotation, and the mean over the patches instead of a class token (Beyer et al. 2022, arXiv:2205.01580). Patches of
    `patch` x `patch` pixels; a picture that they don't fill is padded with its mean on the right and below.

    positions: `sincos`, fixed, of row and column, or `learned`. dim, layers, heads, hidden, dropout: as of the
    transformer.
    """

    positions: Tensor

    def __init__(
        self, *, input_shape: Sequence[int], num_classes: int | None, mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,), patch: int = 4, dim: int = 128, layers: int = 4, heads: int = 4,
        hidden: int | None = None, dropout: float = 0.0, positions: Literal["sincos", "learned"] = "sincos",
        target_mean: float = 0.0, target_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"the data has inputs of shape {tuple(input_shape)}, not height, width, channels")
        if dim % heads or dim % 4:
            raise ValueError(f"dim={dim} must be a multiple of heads={heads} and of 4")
        if positions not in ("sincos", "learned") or patch < 1:
            raise ValueError(f"positions={positions!r} must be sincos or learned, patch={patch} at least 1")
        height, width, channels = input_shape
        rows, columns = -(-height // patch), -(-width // patch)
        self.patch, self.padding = patch, (0, 0, 0, columns * patch - width, 0, rows * patch - height)
        self.standardise = Standardise(mean, std)
        self.embedding = nn.Linear(patch * patch * channels, dim)
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(rows * columns, dim).normal_(std=0.02))
        else:
            self.register_buffer("positions", sincos(rows, columns, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        hidden = hidden or -(-8 * dim // 3 // 32) * 32
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout, causal=False) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, num_classes or 1)
        self.rescale = Rescale(target_mean, target_std) if num_classes is None else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.embedding(self._patches(x)) + self.positions)  # [B, patches, dim]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(torch.mean(self.norm(x), dim=1))
        return logits if self.rescale is None else self.rescale(logits[:, 0])

    def _patches(self, x: Tensor) -> Tensor:
        """[B, height, width, channels] → [B, patches, patch · patch · channels], row by row, at unit scale."""
        x = F.pad(self.standardise(x), self.padding)
        size, p = x.shape, self.patch
        x = x.reshape(size[0], size[1] // p, p, size[2] // p, p, size[3])
        return x.transpose(2, 3).flatten(3).flatten(1, 2)


def sincos(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions [rows · columns, dim]: of each row number and each column number, sine and cosine at dim / 4
    frequencies from 1 down to 1 / 10,000."""
    frequency = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [torch.outer(place.flatten().double(), frequency) for place in (row, column)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
