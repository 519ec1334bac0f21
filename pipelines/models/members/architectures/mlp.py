"""The multi-layer perceptron's parameters."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.models.member import Architecture, Width

if TYPE_CHECKING:
    from torch import nn


class Mlp(Architecture):
    """A multi-layer perceptron on flattened inputs."""

    name = "mlp"

    hidden: list[Width] = Field([64, 64])
    """Widths of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of each hidden layer's outputs that is zeroed at random in training."""

    def module(self) -> "type[nn.Module]":
        from pipelines.models.architectures.mlp import MLP

        return MLP
