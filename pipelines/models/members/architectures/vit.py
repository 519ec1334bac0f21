"""The vision transformer's parameters."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pipelines.models.member import Architecture

if TYPE_CHECKING:
    from torch import nn


class ViT(Architecture):
    """A vision transformer for images."""

    name = "vit"

    patch: int = Field(4, ge=1)
    """Height and width of a patch, in pixels."""
    dim: int = Field(128, ge=1)
    """Width of the residual stream; a multiple of heads and of 4."""
    layers: int = Field(4, ge=0)
    """Number of blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads of a block."""
    hidden: int | None = Field(None, ge=1)
    """Width of a block's SwiGLU. None: 8/3 · dim, rounded up to a multiple of 32."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the attention weights, and of what each block writes, that is zeroed at random in training."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Positions of the patches. sincos: fixed, of row and column. learned: parameters."""

    @model_validator(mode="after")
    def _cuts_into_heads(self) -> "ViT":
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of heads={self.heads} and of 4")
        return self

    def module(self) -> "type[nn.Module]":
        from pipelines.models.architectures.vit import ViT

        return ViT
