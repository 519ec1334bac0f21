"""A decoder-only transformer: pre-norm, rotary positions, SwiGLU, causal attention."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.models.document_mask import attention_mask


class Transformer(nn.Module):
    """tokens int64 [B, T ≤ seq_len] → logits float [B, T, vocab_size]; with `documents` and `positions` (documents.py),
    of each document as if it stood alone.

    RoPE (Su et al. 2021, arXiv:2104.09864), RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), SwiGLU (Shazeer 2020,
    arXiv:2002.05202); weights as in GPT-2: N(0, 0.02²), the projections that write into the residual stream divided by
    √(2·layers). Query, key and value are separate matrices, and so are gate and up, so that tensor parallelism can
    cut each by rows.

    dim: width of the residual stream; hidden: of the SwiGLU (None: 8/3 · dim, rounded up to a multiple of 32);
    tied: the embedding is also the output matrix; dropout: on attention weights and on what each block writes.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, *, vocab_size: int, seq_len: int, dim: int = 256, layers: int = 4, heads: int = 4,
        hidden: int | None = None, dropout: float = 0.0, tied: bool = True, rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise ValueError(f"dim / heads = {dim} / {heads} must be a whole, even number")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        hidden = hidden or -(-8 * dim // 3 // 32) * 32
        self.seq_len = seq_len
        self.dim, self.heads, self.hidden = dim, heads, hidden
        self.embedding = Embedding(vocab_size, dim)
        self.blocks: nn.Module = nn.ModuleList(Block(dim, heads, hidden, dropout) for _ in range(layers))
        self.norm: nn.Module | None = nn.RMSNorm(dim)
        self.head = None if tied else nn.Linear(dim, vocab_size, bias=False)
        cos, sin = rotary_table(seq_len, dim // heads, rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = 0.02 / sqrt(2 * layers) if name.endswith((".out.weight", ".down.weight")) else 0.02
                nn.init.normal_(weight, std=scale)

    def forward(self, x: Tensor, documents: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        if length > self.seq_len:
            raise ValueError(f"{length} tokens, but the model was made for at most seq_len={self.seq_len}")
        cos, sin = (table[:length] if positions is None else table[positions] for table in (self.cos, self.sin))
        mask = None if documents is None else attention_mask(documents)  # once for all blocks
        if not x.is_floating_point():
            x = self.embedding(x)  # [B, T, dim]
        for block in self.blocks.children():
            x = block(x, cos, sin, mask)
        if self.norm is None:  # a stage that is not the last
            return x
        x = self.norm(x)
        logits: Tensor = self.embedding(x) if self.head is None else self.head(x)
        return logits

    def units(self) -> list[nn.Module]:
        return list(self.blocks.children())

    def tensor_plan(self, ranks: int) -> dict[str, Any]:
        """Attention by heads, SwiGLU by hidden units: one all-reduce each, forward and back (Shoeybi et al. 2019,
        arXiv:1909.08053)."""
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel

        for what, count in (("heads", self.heads), ("hidden", self.hidden)):
            if count % ranks:
                raise ValueError(f"{what} {count} % tensor {ranks} = {count % ranks}, but must be 0")
        whole = Replicate()
        plan: dict[str, Any] = {
            "attention": PrepareModuleInput(
                input_layouts=(whole, None, None), desired_input_layouts=(whole, None, None)
            ),
            "mlp": PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole),
        }
        plan |= {f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")}
        plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")}
        plan |= {"attention.out": RowwiseParallel(), "mlp.down": RowwiseParallel()}
        return {
            f"blocks.{index}.{name}": style for index, _ in self.blocks.named_children() for name, style in plan.items()
        }

    def keep_stage(self, stage: int, stages: int) -> list[str]:
        layers = len(self.units())
        if layers < stages:
            raise ValueError(f"layers {layers} < pipeline {stages}: each stage needs a layer")
        first, last = stage == 0, stage == stages - 1
        kept = range(layers * stage // stages, layers * (stage + 1) // stages)
        self.blocks = nn.ModuleDict({name: b for name, b in self.blocks.named_children() if int(name) in kept})
        tied = self.head is None
        if not last:
            self.norm = self.head = None
        if not (first or (last and tied)):
            del self.embedding
        return ["embedding.weight"] if tied and (first or last) else []

    def stage_output(self, inputs: Tensor) -> Tensor:
        return torch.empty(*inputs.shape[:2], self.dim, device="meta")


class Embedding(nn.Embedding):
    """tokens int64 [B, T] → vectors [B, T, dim]; and, where it is also the output matrix, vectors → logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) if x.is_floating_point() else super().forward(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)); [B, T, dim] → [B, T, dim]. Without cos and sin, no rotation;
    with a mask, bool [B, 1, T, T], each query sees the keys that it says."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, *, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Attention(dim, heads, dropout, causal=causal)
        self.mlp_norm = nn.RMSNorm(dim)
        self.mlp = SwiGLU(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask=mask))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention: causal unless told otherwise or given a mask, with rotary positions where it is given their
    table."""

    def __init__(self, dim: int, heads: int, dropout: float, *, causal: bool = True) -> None:
        super().__init__()
        self.head_dim, self.dropout, self.causal = dim // heads, dropout, causal
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        split = (
            *x.shape[:2],
            -1,
            self.head_dim,
        )  # heads by what there is, so that a rank may hold some of them
        query, key = self.query(x).view(split), self.key(x).view(split)  # [B, T, heads, head_dim]
        if cos is not None and sin is not None:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # [B, heads, T, head_dim]
        value = self.value(x).view(split).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and mask is None  # a mask says it all
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def rotary_table(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(-2i/head_dim), each [length, 1, head_dim] with both halves alike; the sine of the
    first half is negated, so that `rotate` needs no negation."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)  # [length, head_dim / 2]
    cos, sin = angle.cos(), angle.sin()
    return (torch.cat([cos, cos], -1)[:, None].float(), torch.cat([-sin, sin], -1)[:, None].float())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + head_dim/2}) of x [B, T, heads, head_dim] by its position's angle."""
    half = x.shape[-1] // 2
    return (x * cos + x.roll(half, -1) * sin).to(x.dtype)
