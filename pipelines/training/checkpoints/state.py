"""A model's and an optimiser's state by name: tensors, and JSON values for all that isn't one.

A tensor's name is `model/<parameter>` or `optimizer/<parameter>/<slot>`; a slot's value may be nested (L-BFGS keeps
lists), and then the path goes on. The value `optimizer/<parameter>` says how the slots are put together again.
Parameters' names are those of the plain model, in every parallel layout.
"""

from collections.abc import Callable, Collection, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.checkpoints.chunks import Chunk

#: Of an optimiser's group: how it computes here, not what.
_HOW = {"params", "fused", "foreach", "capturable", "differentiable"}
#: Slots that count steps, the same under each parameter: also under one that is a scalar itself.
COUNTERS = {"step", "mu_product"}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, `model/<name>`; no copies."""
    return {f"model/{name}": tensor.detach() for name, tensor in model.state_dict().items()}


def parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """The name of each parameter; the first of its names for a shared one."""
    return {parameter: name for name, parameter in model.named_parameters()}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors (no copies) and values. Raises TypeError for what is neither tensor nor JSON."""
    names = parameter_names(model)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for group in optimizer.param_groups:
        settings = {key: _encode(value, "", None) for key, value in group.items() if key not in _HOW}
        for parameter in group["params"]:
            path = f"optimizer/{names[parameter]}"
            slots = {
                slot: _encode(value, f"{path}/{slot}", tensors)
                for slot, value in optimizer.state.get(parameter, {}).items()
            }
            values[path] = {"group": settings, "slots": slots}
    return tensors, values


def _encode(value: Any, path: str, tensors: dict[str, Tensor] | None) -> Any:
    """JSON for `value`; tensors are put aside under their path, or become numbers where there is no place for them."""
    if isinstance(value, Tensor):
        if tensors is None:
            return value.tolist()
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, list | tuple):
        return {"list": [_encode(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _encode(item, f"{path}/{key}", tensors) for key, item in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the optimiser's {path or 'group'} holds a {type(value).__name__}, which no checkpoint can hold")


def _decode(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """What `_encode` made JSON of; a tuple comes back as a list."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    if "list" in value:
        return [_decode(item, tensor) for item in value["list"]]
    return {key: _decode(item, tensor) for key, item in value["dict"].items()}


def optimizer_fault(values: Mapping[str, Any], tensors: Collection[str]) -> str | None:
    """Which value of an optimiser is none that `optimizer_state` gives, or is of a tensor that isn't one of `tensors`;
    None where all are sound."""
    for name, value in values.items():
        if not name.startswith("optimizer/"):
            continue
        parts = value if isinstance(value, dict) and value.keys() == {"group", "slots"} else {}
        if not (parts and all(isinstance(part, dict) for part in parts.values())):
            return f"value {name!r} is no optimiser's state"
        for part, known in (("group", ()), ("slots", tensors)):
            wrong = next((key for key, found in parts[part].items() if not _is_encoded(found, known)), None)
            if wrong is not None:
                return f"value {name!r}, {wrong!r}: {parts[part][wrong]!r} is none that an optimiser has"
    return None


def _is_encoded(value: Any, tensors: Collection[str]) -> bool:
    """Whether `_encode` may have made it, with tensors of these names. A tensor of a group is a number, or a list."""
    if isinstance(value, list):
        return not tensors and all(isinstance(item, bool | int | float | list) for item in value)
    if not isinstance(value, dict):
        return True
    if len(value) != 1:
        return False
    [(kind, inner)] = value.items()
    if kind == "tensor":
        return isinstance(inner, str) and inner in tensors
    items = inner.values() if isinstance(inner, dict) and kind == "dict" else inner if kind == "list" else None
    return isinstance(items, list | ValuesView) and all(_is_encoded(item, tensors) for item in items)


def optimizer_chunks(
    model: nn.Module, values: Mapping[str, Any], shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> dict[str, Chunk]:
    """Empty chunks for the state that this rank's parameters had; `shapes` has every tensor that was saved."""
    chunks: dict[str, Chunk] = {}
    for parameter, name in parameter_names(model).items():
        for path in _paths(values.get(f"optimizer/{name}", {}).get("slots", {})):
            dtype, shape = shapes[path]
            if shape == tuple(parameter.shape):
                box = Chunk.of(parameter)
                chunks[path] = box.holding(torch.empty(box.sizes, dtype=dtype))
            else:
                chunks[path] = Chunk(torch.empty(shape, dtype=dtype), (0,) * len(shape), shape)
    return chunks


def _paths(value: Any) -> list[str]:
    if not isinstance(value, dict | list):
        return []
    if isinstance(value, dict) and isinstance(value.get("tensor"), str):
        return [value["tensor"]]
    return [path for item in (value.values() if isinstance(value, dict) else value) for path in _paths(item)]


def load_model(model: nn.Module, chunks: Mapping[str, Chunk]) -> None:
    """Copy `model/…` chunks into the model's tensors."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            Chunk.of(tensor).data.copy_(chunks[name].data)


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, chunks: Mapping[str, Chunk], values: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` gave. Settings of groups come back too, but for how they compute."""
    names = parameter_names(model)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            saved = values.get(f"optimizer/{names[parameter]}")
            if saved is None:
                continue
            settings = {key: _decode(value, lambda _: torch.empty(0)) for key, value in saved["group"].items()}
            group.update({key: _like(group[key], value) for key, value in settings.items() if key in group})
            slots = _slots(parameter, group, saved["slots"], chunks)
            if slots:
                optimizer.state[parameter] = slots


def _slots(
    parameter: Tensor, group: Mapping[str, Any], saved: Mapping[str, Any], chunks: Mapping[str, Chunk]
) -> dict[str, Any]:
    """A parameter's state. torch.optim, and the line searches, keep scalars on the host unless a kernel needs them."""
    on_host = not (group.get("fused") or group.get("capturable"))

    def of(slot: str, value: Any) -> Any:
        scalar = slot in COUNTERS or parameter.ndim > 0
        return _decode(
            value, lambda path: _placed(chunks[path], parameter, on_host and scalar and not chunks[path].shape)
        )

    return {slot: of(slot, value) for slot, value in saved.items()}


def _like(now: Any, value: Any) -> Any:
    if isinstance(now, Tensor):
        return torch.full_like(now, value)
    return tuple(value) if isinstance(now, tuple) else value


def _placed(chunk: Chunk, parameter: Tensor, on_host: bool) -> Tensor:
    """A copy of the chunk's data where the optimiser wants it: on the parameter's device, laid out like the parameter
    where it has the parameter's shape."""
    data = chunk.data.clone() if on_host or parameter.device.type == "cpu" else chunk.data.to(parameter.device)
    distributed: Any = parameter
    if not hasattr(parameter, "device_mesh") or chunk.shape != tuple(parameter.shape):
        return data
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        data, distributed.device_mesh, distributed.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip
