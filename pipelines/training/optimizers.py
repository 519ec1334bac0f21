"""The optimiser and the schedule of its learning rate."""

from collections.abc import Iterable
from math import cos, pi

import torch
from torch import Tensor, nn

from pipelines.params import Train


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); weight decay on matrices only, not on biases and norms."""
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)  # one kernel a group instead of one a tensor
    betas = (train.betas[0], train.betas[1])
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.lr, betas=betas, fused=fused)


def learning_rate(step: int, steps: int, train: Train) -> float:
    """The rate of step 0 ≤ `step` < `steps`: a linear rise over the first `warmup` share (the first step has one part
    of it, the last the peak), then a cosine from the peak to `min_lr` of it at the last step."""
    rise = round(train.warmup * steps)
    if step < rise:
        return train.lr * (step + 1) / rise
    done = (step - rise) / max(1, steps - 1 - rise)
    return train.lr * (train.min_lr + (1 - train.min_lr) * (1 + cos(pi * done)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradients down to a norm of `limit` where it is larger. Returns the norm before, a scalar tensor."""
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
