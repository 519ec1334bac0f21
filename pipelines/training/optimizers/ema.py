"""An exponential moving average of the weights (Polyak & Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipelines.params.train.step import Ema
from pipelines.training.optimizers.vectors import local


@dataclass
class Average:
    """The average of the weights of `model` that learn, each laid out (device, shards) as the weight itself.

    `update` costs a pass over the weights; nothing is copied to the host. Buffers are the model's own.
    """

    model: nn.Module
    settings: Ema
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {name: weight.detach().clone() for name, weight in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After `step` steps: average ← decay · average + (1 - decay) · weights, every `every` steps."""
        if step % self.settings.every:
            return
        count = step // self.settings.every
        decay = min(self.settings.decay, (1 + count) / (10 + count)) if self.settings.warmup else self.settings.decay
        weights = [weight.detach() for weight in self._weights().values()]
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model's weights are the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights().items():
            mine = self.tensors[name]
            kept = weight.detach().clone()
            weight.copy_(mine)
            mine.copy_(kept)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what this rank's shards of `tensors` were, by name. Raises KeyError for another model's."""
        for name, mine in self.tensors.items():
            local(mine).copy_(tensors[name])
