"""The convolutional network's parameters."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.models.member import Architecture, Width

if TYPE_CHECKING:
    from torch import nn


class Cnn(Architecture):
    """A small convolutional network for images."""

    name = "cnn"

    channels: list[Width] = Field([32, 64])
    """Channels of each stage: two convolutions and a pooling."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of the last layer that is zeroed at random in training."""

    def module(self) -> "type[nn.Module]":
        from pipelines.models.architectures.cnn import CNN

        return CNN
