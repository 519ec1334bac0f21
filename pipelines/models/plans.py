"""How a model can be cut over ranks. Data parallelism asks nothing of a model; the other kinds look for these methods.

def units(self) -> list[nn.Module]
    The repeated blocks, in order. Each is gathered, recomputed (activation checkpointing) and compiled as one.
    Without it: the items of the outermost `nn.ModuleList`s and `nn.Sequential`s.

def tensor_plan(self, ranks: int) -> dict[str, ParallelStyle]
    What `torch.distributed.tensor.parallel.parallelize_module` takes. Modules that it doesn't name are held whole
    on every rank of the group; between modules, activations are whole, plain tensors. Raises ValueError with the
    equation when the model can't be cut so.

def keep_stage(self, stage: int, stages: int) -> list[str]
    Drop all but stage `stage` of `stages` consecutive ones, under the same parameter names. After it, `forward`
    takes what the stage before gives (the first: inputs) and returns what the next takes (the last: answers), one
    float32 tensor with as many rows as there are samples. Returns the names of parameters that the first and the
    last stage both hold. Raises ValueError with the equation when there are too few layers.

def stage_output(self, inputs: Tensor) -> Tensor
    An empty tensor on the meta device, shaped as what passes from stage to stage for these inputs.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class TensorParallel(Protocol):
    def tensor_plan(self, ranks: int) -> dict[str, Any]: ...


@runtime_checkable
class PipelineParallel(Protocol):
    def keep_stage(self, stage: int, stages: int) -> list[str]: ...

    def stage_output(self, inputs: Tensor) -> Tensor: ...


def units_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model; see above."""
    own = getattr(model, "units", None)
    if callable(own):
        units: list[nn.Module] = own()
        return units
    return [unit for unit in _outermost_items(model) if any(True for _ in unit.parameters())]


def _outermost_items(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from child
        else:
            yield from _outermost_items(child)
