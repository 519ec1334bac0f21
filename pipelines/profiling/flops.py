"""Formulas that torch's flop counter lacks: attention as it runs on the CPU."""

from typing import Any


def more_formulas() -> dict[Any, Any]:
    """For `FlopCounterMode(custom_mapping=…)`. A multiplication and its addition are two operations."""
    import torch

    aten: Any = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Shapes [B, H, Tq, D], [B, H, Tk, D], [B, H, Tk, Dv]: scores and their product with the values. As torch's own
    formulas do, it counts whole matrices: a causal mask halves what must be computed, not what is counted."""
    batch, heads, queries, dim = query
    keys, out = key[2], value[3]
    return int(2 * batch * heads * queries * keys * (dim + out))


def attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The scores again, then the gradients of scores, queries, keys and values: five products for forward's two."""
    batch, heads, queries, dim = query
    keys, out = key[2], value[3]
    return int(2 * batch * heads * queries * keys * (3 * dim + 2 * out))
