"""Layers that bring stored values to unit scale and back, with constants that the data gives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / std along the last axis, as float32; a constant feature (std 0) becomes 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64)
        scale = torch.where(deviation > 0, 1 / deviation, 0.0)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", scale.float())

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.scale


class Rescale(nn.Module):
    """x · std + mean, as float32: from unit scale to the target's."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = float(mean), float(std)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.std + self.mean
