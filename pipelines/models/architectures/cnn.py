"""A small convolutional network for images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.models.architectures.scaling import Rescale, Standardise


class CNN(nn.Module):
    """x [B, height, width, channels] as stored (uint8) → logits [B, num_classes], or values [B] for a regression.

    A stage for each entry of `channels`: two 3x3 convolutions with group norm and GELU, then 2x2 max pooling (while
    the picture is at least 4 pixels wide and high); global mean, dropout, linear. Group norm rather than batch norm,
    so that a sample's output does not depend on its batch, hence not on ranks or accumulation.
    """

    def __init__(
        self, *, input_shape: Sequence[int], num_classes: int | None, mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,), channels: Sequence[int] = (32, 64), dropout: float = 0.0,
        target_mean: float = 0.0, target_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"the data has inputs of shape {tuple(input_shape)}, not height, width, channels")
        height, width, before = input_shape
        stages: list[nn.Module] = []
        for after in channels:
            stages += [_convolution(before, after), _convolution(after, after)]
            if min(height, width) >= 4:
                stages.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            before = after
        self.standardise = Standardise(mean, std)
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes or 1)
        self.rescale = Rescale(target_mean, target_std) if num_classes is None else None

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.standardise(x).permute(0, 3, 1, 2).contiguous())  # [B, C, H, W]
        logits: Tensor = self.head(self.dropout(torch.mean(features, dim=(2, 3))))
        return logits if self.rescale is None else self.rescale(logits[:, 0])


def _convolution(before: int, after: int) -> nn.Sequential:
    groups = next(g for g in (8, 4, 2, 1) if after % g == 0)
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(groups, after), nn.GELU())
