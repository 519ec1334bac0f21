"""Parameters that every rank of a tensor group holds whole, as replicated DTensors.

So all parameters of a model are DTensors on one mesh: an optimiser's fused or foreach kernels take no mixture.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module

from storage.errors import ParamsError


def hold_whole(model: nn.Module, mesh: DeviceMesh) -> None:
    """Replicate the parameters that no plan has cut. Raises ParamsError for one that lies beside submodules."""
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if not isinstance(p, DTensor)]
        if not own:
            continue
        if any(True for _ in module.children()):
            raise ParamsError(
                f"train.parallel.tensor: {type(model).__name__}.{name} has parameters beside its submodules, which a "
                "tensor group cannot hold. Move them into a module of their own, or name it in tensor_plan."
            )
        distribute_module(module, mesh, None, _enter, _leave)  # type: ignore[arg-type]  # its stubs say less


def _enter(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return tuple(
        DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        if isinstance(x, Tensor) and not isinstance(x, DTensor)
        else x
        for x in inputs
    )


def _leave(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
    return output.to_local() if isinstance(output, DTensor) else output
