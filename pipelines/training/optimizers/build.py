"""From `train.optimizer` to a torch optimiser."""

from typing import Any

import torch
from torch import nn

from pipelines.params import Train
from pipelines.params.train.optimizer import LBFGS, SGD, Adagrad, Adam, AdamW, ConjugateGradient, Muon, NAdam
from pipelines.training.optimizers.conjugate_gradient import ConjugateGradientOptimizer
from pipelines.training.optimizers.lbfgs import LBFGSOptimizer
from pipelines.training.optimizers.muon import MuonWithAdamW, split_for_muon

Group = dict[str, Any]
_TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
#: Kinds of device on which torch has one kernel for a whole group, instead of some a tensor (torch 2.13).
_FUSED = {SGD: ("cpu", "cuda", "mps"), Adam: ("cpu", "cuda", "mps", "xpu"), AdamW: ("cpu", "cuda", "mps", "xpu"),
          Adagrad: ("cpu",)}  # fmt: skip


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The optimiser of `train.optimizer` for the weights of `model` that learn; weight decay on matrices only, not on
    biases and norms. Raises ParamsError for a model without such a weight, or one that the optimiser can't take."""
    settings = train.optimizer
    if isinstance(settings, Muon):
        hidden, rest = split_for_muon(model)
        if train.betas is not None:
            settings = settings.model_copy(update={"betas": train.betas})
        first = {"params": hidden, "weight_decay": train.weight_decay}
        return MuonWithAdamW(first, _groups(rest, train), train.lr, settings)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    groups = _groups(parameters, train)
    if isinstance(settings, LBFGS):
        return LBFGSOptimizer(groups, settings, train.lr)
    if isinstance(settings, ConjugateGradient):
        return ConjugateGradientOptimizer(groups, settings, train.lr)
    arguments = settings.model_dump(exclude={"name"})
    if train.betas is not None:
        arguments["betas"] = train.betas
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    if isinstance(settings, NAdam):
        arguments["decoupled_weight_decay"] = True
    if type(settings) in _FUSED:
        arguments["fused"] = fusible(parameters, _FUSED[type(settings)])
    make: Any = _TORCH[settings.name]
    optimizer: torch.optim.Optimizer = make(groups, lr=train.lr, **arguments)
    return optimizer


def _groups(parameters: list[nn.Parameter], train: Train) -> list[Group]:
    """With weight decay and without."""
    groups: list[Group] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fusible(parameters: list[nn.Parameter], kinds: tuple[str, ...]) -> bool:
    """Whether all lie on a device of one of these kinds."""
    return all(p.device.type in kinds for p in parameters)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For all groups; a group's `lr_scale` is a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
