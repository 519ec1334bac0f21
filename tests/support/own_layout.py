"""A trainer of one's own that cuts its model itself, over the ranks of a tensor or a shard group, by torch alone."""

from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from pipelines.models.plans import units_of
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.trainer.entrypoint import opened
from pipelines.training.trainer.job import TrainerJob
from pipelines.workspace import Workspace

NAME = "own_layout:train"


def train(job: TrainerJob) -> dict[str, Any]:
    """Validates before each step, and gives the losses that it saw."""
    model: Any = job.build_model()
    mesh = job.mesh()
    if mesh is not None and job.layout.size("tensor") > 1:
        parallelize_module(model, mesh["tensor"], model.tensor_plan(job.layout.size("tensor")))
    elif mesh is not None:
        for module in (*units_of(model), model):
            fully_shard(module, mesh=mesh["shard"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, foreach=False)
    loss, val = [], []
    for step, batch in zip(range(job.steps), job.train, strict=False):
        val.append(job.validate(model)["val_loss"])
        job.seed_step(step)
        part = job.loss(model(batch["inputs"]), batch["targets"]) * batch["weight"]
        part.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        mine = part.detach() if job.layout.owns_loss else 0.0
        loss.append(job.ranks.sum(mine, device=job.device)[0] / job.layout.data_world)
    return {"loss": loss, "val": val}


def run_own(ws: Workspace, ranks: Ranks) -> dict[str, Any]:
    """What `train` gives, with a run that records nothing."""
    from support.training_samples import without_mlflow

    import pipelines.tracking

    before = pipelines.tracking.open_run
    without_mlflow()
    try:
        with opened(ws, ranks, StopRequest()) as job:
            return train(job)
    finally:
        pipelines.tracking.open_run = before
