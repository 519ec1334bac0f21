"""A pipeline: each rank runs one stage of the model on microbatches of the batch that follow each other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from pipelines.params import Parallel
from pipelines.training.parallelism.gradients import held
from pipelines.training.parallelism.layout import Layout
from pipelines.training.parallelism.runner import NOTHING, Beside, Objective, reshard

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Pipelined:
    """1F1B (Narayanan et al. 2019, PipeDream-flush) or GPipe (Huang et al. 2019, arXiv:1811.06965).

    Every microbatch has the same number of rows, as the stages' buffers are made once a shape: a short batch is filled
    up with zero samples, which the objective never sees.
    """

    def __init__(
        self, module: nn.Module, stage_output: Callable[[Tensor], Tensor], layout: Layout, mesh: DeviceMesh,
        autocast: Callable[[], AbstractContextManager[None]], *,
        parallel: Parallel, shared: list[Tensor], device: torch.device,
    ) -> None:  # fmt: skip
        """`stage_output`: shapes between stages, see models.plans; `shared`: parameters of the first and last stage."""
        self.module, self.stage_output, self.layout, self.autocast = module, stage_output, layout, autocast
        self.schedule, self.microbatches = SCHEDULES[parallel.schedule], parallel.microbatch_count
        self.shared, self.device = shared, device
        self.group, self.ends = mesh["pipeline"].get_group(), _ends(layout, mesh)
        self.local = False
        self._made: dict[tuple[object, ...], PipelineScheduleSingle] = {}
        self._batch: tuple[Tensor, Objective] | None = None
        self._total = torch.zeros((), device=device)

    def backward(
        self, inputs: Tensor, targets: Tensor, objective: Objective, most: int, beside: Beside = NOTHING
    ) -> Tensor:
        filled = self._filled(inputs)
        places = torch.arange(len(filled), device=self.device)
        more = self._all_filled(beside)
        schedule = self._schedule(filled, learns=True)
        self._batch, self._total = (targets, objective), torch.zeros((), device=self.device)
        with self.autocast():
            if self._first:
                schedule.step(filled, target=places, return_outputs=False, **more)
            else:
                schedule.step(target=places, return_outputs=False, **more)
        self._batch = None
        for parameter in self.shared:
            _sum_ends(parameter.grad, self.ends)
        return self._total * self.layout.owns_loss

    def answers(self, inputs: Tensor, beside: Beside = NOTHING) -> Tensor | None:
        filled = self._filled(inputs)
        more = self._all_filled(beside)
        schedule = self._schedule(filled, learns=False)
        with torch.no_grad(), self.autocast():
            answers: Tensor | None = schedule.step(filled, **more) if self._first else schedule.step(**more)
        reshard(self.module)
        return None if answers is None else answers[: len(inputs)]

    @property
    def _first(self) -> bool:
        return self.layout.place("pipeline") == 0

    def _filled(self, inputs: Tensor) -> Tensor:
        """The inputs and zero samples, so that they make microbatches of one size."""
        rows = -(-max(1, len(inputs)) // self.microbatches) * self.microbatches
        return torch.cat([inputs, inputs.new_zeros(rows - len(inputs), *inputs.shape[1:])])

    def _all_filled(self, beside: Beside) -> dict[str, Any]:
        """For the module of each stage: all ranks of a pipeline read the same batch."""
        return {name: self._filled(values) for name, values in beside.items()}

    def _loss(self, answers: Tensor, places: Tensor) -> Tensor:
        """Of one microbatch, whose rows stand at `places` of the batch."""
        assert self._batch is not None
        targets, objective = self._batch
        mine = places[places < len(targets)]
        loss, scaled = objective(answers[: len(mine)], targets[mine])
        self._total += loss.detach()
        return scaled

    def _schedule(self, filled: Tensor, *, learns: bool) -> PipelineScheduleSingle:
        """The schedule for microbatches of this shape, made once."""
        key = (filled.shape, learns)
        if key not in self._made:
            microbatch = filled[: len(filled) // self.microbatches]
            stage_output = self.stage_output(microbatch).requires_grad_(learns)  # on the meta device: shapes only
            stage = PipelineStage(
                self.module, self.layout.place("pipeline"), self.layout.size("pipeline"), self.device, group=self.group,
                input_args=microbatch if self._first else stage_output, output_args=stage_output,
            )  # fmt: skip
            kind = self.schedule if learns else ScheduleGPipe
            # scale_grads: the objective already divides by the global count.
            self._made[key] = kind(stage, self.microbatches, loss_fn=self._loss if learns else None, scale_grads=False)
        return self._made[key]


def _ends(layout: Layout, mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """The group of this pipeline's first and last stage; None on stages between. All ranks of the mesh call it."""
    if layout.size("pipeline") == 2:
        return mesh["pipeline"].get_group()
    columns = mesh.mesh.flatten(1).T.tolist()  # the pipelines' ranks, first stage to last
    mine: dist.ProcessGroup | None = None
    for column in columns:
        group = dist.new_group([column[0], column[-1]])
        if layout.rank in (column[0], column[-1]):
            mine = group
    return mine


def _sum_ends(gradient: Tensor | None, group: dist.ProcessGroup | None) -> None:
    """Both ends use a shared parameter: its gradient is the sum of theirs, and so it stays the same on both."""
    assert gradient is not None
    dist.all_reduce(held(gradient), group=group)
