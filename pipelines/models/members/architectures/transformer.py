"""The transformer's parameters."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipelines.models.member import Architecture

if TYPE_CHECKING:
    from torch import nn


class Transformer(Architecture):
    """A decoder-only transformer of tokens."""

    name = "transformer"

    dim: int = Field(256, ge=1)
    """Width of the residual stream. dim / heads must be a whole, even number."""
    layers: int = Field(4, ge=0)
    """Number of blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads of a block."""
    hidden: int | None = Field(None, ge=1)
    """Width of a block's SwiGLU. None: 8/3 · dim, rounded up to a multiple of 32."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the attention weights, and of what each block writes, that is zeroed at random in training."""
    tied: bool = True
    """Whether the embedding is also the output matrix."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary positions' wavelengths."""

    @model_validator(mode="after")
    def _cuts_into_heads(self) -> "Transformer":
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim / heads = {self.dim} / {self.heads} must be a whole, even number")
        return self

    def module(self) -> "type[nn.Module]":
        from pipelines.models.architectures.transformer import Transformer

        return Transformer
