"""Muon for the hidden matrices, AdamW for the rest, behind one face."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.params.train.optimizer import Muon
from storage.errors import ParamsError


def split_for_muon(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices, the rest) of the weights that learn. Hidden: of two or more dimensions, in no embedding, and
    not the last one, which gives the answers (where there is an embedding: if it has as many rows, else the embedding
    gives the answers, too). Raises ParamsError where there is none."""
    learning = [p for p in model.parameters() if p.requires_grad]
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    outer = set(tables)
    matrices = [p for p in learning if p.ndim >= 2 and p not in outer]
    if matrices and (not tables or matrices[-1].shape[0] in {table.shape[0] for table in tables}):
        matrices.pop()
    if not matrices:
        raise ParamsError(
            "train.optimizer=muon: this model has no hidden matrix, just embeddings, a last layer and vectors, which "
            "AdamW would train alone. Set train.optimizer to adamw."
        )
    hidden = set(matrices)
    return matrices, [p for p in learning if p not in hidden]


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` as one optimiser; its groups and state are those of both.

    Weights of more than two dimensions (convolutions) are seen as matrices with a row for each output, as in Jordan's
    own runs. `hidden` and `rest` are groups; state: `momentum_buffer`, or AdamW's.
    """

    def __init__(self, hidden: dict[str, Any], rest: list[dict[str, Any]], lr: float, settings: Muon) -> None:
        super().__init__([hidden, *rest], {"lr": lr})
        for group in self.param_groups[1:]:
            group["lr_scale"] = settings.rest_lr
        self._matrices = {p: nn.Parameter(_matrix(p)) for p in self.param_groups[0]["params"]}
        self._muon = torch.optim.Muon(
            self._matrices.values(), lr, hidden["weight_decay"], settings.momentum, settings.nesterov,
            ns_steps=settings.ns_steps, adjust_lr_fn=settings.scale,
        )  # fmt: skip
        fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for group in rest for p in group["params"])
        betas = (settings.betas[0], settings.betas[1])
        # Without vectors and embeddings there is nothing left for it.
        self._adamw = torch.optim.AdamW(self.param_groups[1:], lr, betas, settings.eps, fused=fused) if rest else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both, with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden, *rest = self.param_groups
        inner = self._muon
        inner.param_groups[0] |= {"lr": hidden["lr"], "weight_decay": hidden["weight_decay"]}
        for p, matrix in self._matrices.items():
            slots = self.state[p]
            if "momentum_buffer" not in slots:
                slots["momentum_buffer"] = torch.zeros_like(p)
            matrix.data = _matrix(p)
            matrix.grad = None if p.grad is None else _matrix(p.grad)
            inner.state[matrix] = {"momentum_buffer": _matrix(slots["momentum_buffer"])}
        inner.step()  # type: ignore[no-untyped-call]
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = rest, self.state  # loading a state has made new ones
            self._adamw.step()
        for matrix in self._matrices.values():
            matrix.grad = None
        return loss


def _matrix(tensor: Tensor) -> Tensor:
    """The same memory as [outputs, inputs]."""
    tensor = tensor.detach()
    return tensor if tensor.ndim == 2 else tensor.view(tensor.shape[0], -1)
