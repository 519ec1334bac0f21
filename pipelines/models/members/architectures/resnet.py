"""The residual network's parameters."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipelines.models.member import Architecture, Width

if TYPE_CHECKING:
    from torch import nn


class ResNet(Architecture):
    """A residual network for images; by default ResNet-18."""

    name = "resnet"

    widths: list[Width] = Field([64, 128, 256, 512], min_length=1)
    """Channels of each stage."""
    depths: list[Annotated[int, Field(ge=0)]] = Field([2, 2, 2, 2])
    """Blocks of each stage; as many numbers as widths."""
    stem: Literal["auto", "small", "large"] = "auto"
    """First layers. small: a 3x3 convolution. large: a 7x7 one of stride 2 and a pooling. auto: small below 64
    pixels."""
    norm: Literal["group", "batch"] = "group"
    """Normalisation. group: of each sample by itself. batch: of a rank's samples together, whose number then changes
    the result (docs/models.md)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of the last layer that is zeroed at random in training."""

    @model_validator(mode="after")
    def _has_stages(self) -> "ResNet":
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths={self.widths} and depths={self.depths} must be as many")
        return self

    def module(self) -> "type[nn.Module]":
        from pipelines.models.architectures.resnet import ResNet

        return ResNet
