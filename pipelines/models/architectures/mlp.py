"""A multi-layer perceptron on standardised features."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipelines.models.architectures.scaling import Rescale, Standardise


class MLP(nn.Module):
    """x [B, *shape], any number type → logits [B, num_classes], or values [B] when num_classes is None.

    hidden: widths of the hidden layers; dropout: after each of them. Inputs are standardised along their last axis by
    `mean` and `std`, then flattened; a regression's output is scaled back by `target_mean` and `target_std`.
    """

    def __init__(
        self, *, in_features: int, num_classes: int | None, mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,), hidden: Sequence[int] = (64, 64), dropout: float = 0.0,
        target_mean: float = 0.0, target_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
        self.standardise = Standardise(mean, std)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes or 1)
        self.rescale = Rescale(target_mean, target_std) if num_classes is None else None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(torch.flatten(self.standardise(x), 1)))
        return logits if self.rescale is None else self.rescale(logits[:, 0])
