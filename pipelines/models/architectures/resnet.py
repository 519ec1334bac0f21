"""A residual network for images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.models.architectures.scaling import Rescale, Standardise

Norm = Literal["group", "batch"]
Stem = Literal["auto", "small", "large"]
LARGE = 64  # pixels from which on the stem of ImageNet's pictures is chosen


class ResNet(nn.Module):
    """x [B, height, width, channels] as stored (uint8) → logits [B, num_classes], or values [B] for a regression.

    ResNet of basic blocks (He et al. 2015, arXiv:1512.03385); the defaults are ResNet-18. A stage for each entry of
    `widths`, with as many blocks as `depths` says; each stage after the first halves the picture.

    stem: `small` is one 3x3 convolution (for pictures such as CIFAR's), `large` a 7x7 one of stride 2 and a pooling;
    auto: small below 64 pixels. norm: `group` (Wu & He 2018, arXiv:1803.08494) or `batch`. With group norm a sample's
    output does not depend on its batch, so that any number of ranks and pieces gives the same result. With batch norm
    it does: each rank normalises by its own samples, and its running averages are rank 0's. dropout: before the head.
    """

    def __init__(
        self, *, input_shape: Sequence[int], num_classes: int | None, mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,), widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2), stem: Stem = "auto", norm: Norm = "group", dropout: float = 0.0,
        target_mean: float = 0.0, target_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"the data has inputs of shape {tuple(input_shape)}, not height, width, channels")
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths={list(widths)} and depths={list(depths)} must be as many, and at least one")
        if norm not in ("group", "batch") or stem not in ("auto", "small", "large"):
            raise ValueError(f"norm={norm!r} must be group or batch, stem={stem!r} auto, small or large")
        height, width, channels = input_shape
        large = stem == "large" or (stem == "auto" and min(height, width) >= LARGE)
        kernel, stride = (7, 2) if large else (3, 1)
        self.standardise = Standardise(mean, std)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False), _norm(norm, widths[0]), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1) if large else nn.Identity(),
        )  # fmt: skip
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, (after, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                blocks.append(_Block(before, after, 2 if stage and not index else 1, norm))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes or 1)
        self.rescale = Rescale(target_mean, target_std) if num_classes is None else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        pictures = self.standardise(x).permute(0, 3, 1, 2).contiguous()  # [B, C, H, W]
        features = torch.mean(self.blocks(self.stem(pictures)), dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits if self.rescale is None else self.rescale(logits[:, 0])


class _Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))). The last norm begins at 0, so that each block begins as its
    shortcut (Goyal et al. 2017, arXiv:1706.02677)."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = _norm(norm, after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = _norm(norm, after)
        nn.init.zeros_(self.second_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _norm(norm, after))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(out)))


def _norm(kind: Norm, channels: int) -> nn.GroupNorm | nn.BatchNorm2d:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 4), 1)
    return nn.GroupNorm(groups, channels)
