"""Cutting a model over the mesh. Every rank starts from the whole plain model; names of parameters never change."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pipelines.models.plans import PipelineParallel, TensorParallel, units_of
from pipelines.params import Parallel, Train
from pipelines.training.parallelism.gradients import persistent_buffers
from pipelines.training.parallelism.layout import DIMENSIONS, Layout
from pipelines.training.parallelism.replicated import hold_whole
from pipelines.training.parallelism.runner import Direct, Runner
from pipelines.training.process.device import Precision
from storage.errors import ParamsError

_ONE_BUCKET = 1 << 20  # MiB that no model's gradients reach


@dataclass(frozen=True)
class Parallelized:
    """`model` with this rank's parameters; `module` to call instead (itself, or DDP around it); what runs it; and the
    parameters that a pipeline's first and last stage share."""

    model: nn.Module
    module: nn.Module
    runner: Runner
    shared: list[Tensor]


def parallelize(
    model: nn.Module, layout: Layout, mesh: DeviceMesh | None, train: Train, device: torch.device, precision: Precision
) -> Parallelized:  # fmt: skip
    """Cut the whole plain `model` over the mesh, in place. Raises ParamsError when it can't be cut so."""
    parallel = train.parallel
    names = keep_stage(model, layout)
    model.to(device)
    share_products(model, layout, mesh)
    refine_units(model, parallel)
    module = join_copies(model, layout, mesh, train, device, precision)
    shared: list[Tensor] = [model.get_parameter(name) for name in names]
    if layout.size("pipeline") == 1 or mesh is None:
        runner: Runner = Direct(
            module, model, precision.autocast,
            accumulate=train.accumulate, zero=parallel.zero if layout.size("shard") > 1 else 1,
            owns_loss=layout.owns_loss,
        )  # fmt: skip
        return Parallelized(model, module, runner, shared)
    from pipelines.training.parallelism.pipeline_parallel import Pipelined

    assert isinstance(model, PipelineParallel)
    runner = Pipelined(
        module, model.stage_output, layout, mesh, precision.autocast, parallel=parallel, shared=shared, device=device,
    )  # fmt: skip
    return Parallelized(model, module, runner, shared)


def keep_stage(model: nn.Module, layout: Layout) -> list[str]:
    """Leave in `model` what this rank's stage holds. Returns the parameters that the first and the last stage share."""
    stages = layout.size("pipeline")
    if stages == 1:
        return []
    if not isinstance(model, PipelineParallel):
        raise _no_plan(model, "pipeline", stages, "keep_stage and stage_output")
    try:
        return model.keep_stage(layout.place("pipeline"), stages)
    except ValueError as error:
        raise ParamsError(f"train.parallel.pipeline = {stages}: {error}.") from error


def share_products(model: nn.Module, layout: Layout, mesh: DeviceMesh | None) -> None:
    """Cut the matrices of the model's tensor_plan over this rank's tensor group; hold the other parameters whole."""
    ranks = layout.size("tensor")
    if ranks == 1 or mesh is None:
        return
    if not isinstance(model, TensorParallel):
        raise _no_plan(model, "tensor", ranks, "tensor_plan")
    from torch.distributed.tensor.parallel import parallelize_module

    try:
        plan = model.tensor_plan(ranks)
    except ValueError as error:
        raise ParamsError(f"train.parallel.tensor = {ranks}: {error}.") from error
    # What leaves a plan's last module is a view of a DTensor, and FSDP warns of writing into one; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    parallelize_module(model, mesh["tensor"], plan)
    hold_whole(model, mesh["tensor"])


def refine_units(model: nn.Module, parallel: Parallel) -> None:
    """Activation checkpointing and compilation, block by block; in place, so that names stay."""
    units = units_of(model)
    if parallel.activation_checkpointing:
        if not units:
            raise ParamsError(
                f"train.parallel.activation_checkpointing: {type(model).__name__} has no blocks to recompute. Give it "
                "a method `units` (pipelines/models/plans.py), or set it to false."
            )
        for unit in units:
            unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
    if parallel.compile:
        for unit in units or [model]:
            unit.compile()


def join_copies(
    model: nn.Module,
    layout: Layout,
    mesh: DeviceMesh | None,
    train: Train,
    device: torch.device,
    precision: Precision,
) -> nn.Module:
    """The module to call instead of `model`, so that gradients are averaged over the parts of the batch: DDP around it
    where every rank holds its copy whole, else the model itself, its parameters sharded by FSDP2."""
    if mesh is None or layout.data_world == 1:
        return model
    if layout.size("shard") == 1 and layout.size("tensor") == 1:
        ids = [device] if device.type in ("cuda", "xpu") else None
        moving = any(True for _ in persistent_buffers(model))  # tables that never change need no broadcast a step
        communication = train.communication
        # Where there is one input channel, its stride means nothing, and two gradients may differ in it.
        warnings.filterwarnings("ignore", r"(?s)Grad strides do not match.*grad.sizes\(\) = \[\d+, 1, ", UserWarning)
        return DistributedDataParallel(
            model, device_ids=ids, process_group=mesh["data"].get_group(), forward_sync_buffers=moving,
            gradient_as_bucket_view=True,
            bucket_cap_mb=communication.bucket_mb if communication.overlap else _ONE_BUCKET,
        )  # fmt: skip
    return _shard(model, layout, mesh, train.parallel, precision)


def _shard(model: nn.Module, layout: Layout, mesh: DeviceMesh, parallel: Parallel, precision: Precision) -> nn.Module:
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    options: dict[str, Any] = {
        # Copies of tensor groups without shards are a shard group of one: DDP does not take DTensors.
        "mesh": mesh["shard"] if layout.size("data") == 1 else mesh["data", "shard"],
        "reshard_after_forward": parallel.zero == 3 and layout.size("shard") > 1,
        "offload_policy": CPUOffloadPolicy(pin_memory=precision.device == "cuda")
        if parallel.offload
        else OffloadPolicy(),
    }
    if precision.dtype is not torch.float32:  # gathered in the narrow type, summed up in float32
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    for unit in units_of(model):
        fully_shard(unit, **options)
    if "mp_policy" in options:  # what leaves the model, or a stage, is float32 as in every layout
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=precision.dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    fully_shard(model, **options)
    return model


def _no_plan(model: nn.Module, what: str, size: int, methods: str) -> ParamsError:
    return ParamsError(
        f"train.parallel.{what} = {size}: the model {type(model).__name__} does not say how to be cut so: it has no "
        f"{methods} (pipelines/models/plans.py). Add it, or set train.parallel.{what} to 1."
    )


def make_mesh(layout: Layout, device: torch.device) -> DeviceMesh | None:
    """The mesh of all ranks, made by all of them together; None for one rank."""
    if layout.world == 1:
        return None
    return init_device_mesh(device.type, layout.sizes, mesh_dim_names=DIMENSIONS)
