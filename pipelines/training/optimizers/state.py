"""An optimiser's state as named tensors.

Every optimiser here keeps plain tensors by parameter: of the parameter's shape, or scalars (`step`, NAdam's
`mu_product`, the line searches' `count` and `length`). So all of them are addressed as `<parameter>/<slot>`, and
`torch.distributed.checkpoint` can reshard them.
"""

from typing import Any

import torch
from torch import Tensor, nn


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name, `<parameter>/<slot>`, on the CPU."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{slot}": value.detach().cpu()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises KeyError for a parameter that the model doesn't have."""
    parameters = dict(model.named_parameters())
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    state: dict[Tensor, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        place = "cpu" if value.ndim == 0 and parameter not in fused else parameter.device
        state.setdefault(parameter, {})[slot] = value.to(place)
    optimizer.state.clear()  # a checkpoint of before the first step has none, whatever there is now
    optimizer.state.update(state)
