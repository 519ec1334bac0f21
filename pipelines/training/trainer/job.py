"""What a trainer of one's own is given (`train.entrypoint`), and what it owes: docs/your-own-trainer.md.

def train(job, **args):            # or, in a script: job = trainer_job()
    model = job.build_model()
    …                              # go on from job.checkpoint_folder where something is there
    for batch in job.train: …      # job.train.state_dict() into each checkpoint
    job.save_model(model)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from pipelines.models import Task
from pipelines.models.saved import weights
from pipelines.params import Params
from pipelines.training.curves import Curves
from pipelines.training.data.loader import Loader
from pipelines.training.parallelism import Group, Layout, make_mesh
from pipelines.training.parallelism.runner import reshard
from pipelines.training.parts import Goal
from pipelines.training.process.device import seed_step
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from storage.errors import Interrupted, ParamsError, ShardlineError

if TYPE_CHECKING:
    from pipelines.tracking import Run


@dataclass(kw_only=True)
class Loaders:
    """What the trainer reads: the train split, and the val split where there is one."""

    train: Loader
    val: Loader | None


@dataclass(kw_only=True)
class Result:
    """What the trainer leaves: the model, its curves and metrics, and whether it was asked to stop."""

    curves: Curves
    metrics: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Tensor] | None = None
    stopped: bool = False


@dataclass
class TrainerJob:
    """One rank's part of a training.

    params: the recipe's; args: `train.args`. steps: how many it should take (of `train.steps` or `train.epochs`).
    layout: which part of the batch this rank reads, and its place in `train.parallel`. device: where it computes; the
    ranks are connected (torch.distributed) when there are several.
    task: language, classification or regression, of the data. train: the loader, at the start until a state is loaded;
    val: of the val split in its stored order, one pass an iteration, None without such a split.
    run: the MLflow run on rank 0, elsewhere one whose methods do nothing. checkpoint_folder: for whatever the trainer
    keeps to go on from; the same for all ranks, kept until the model is published, and for this training alone (other
    parameters or data get another folder). stop: true once this rank got a SIGINT or SIGTERM.
    """

    params: Params
    goal: Goal
    group: Group
    loaders: Loaders
    run: "Run"
    checkpoint_folder: Path
    stop: StopRequest
    result: Result

    @property
    def args(self) -> dict[str, Any]:
        return self.params.train.args

    @property
    def steps(self) -> int:
        return self.goal.steps

    @property
    def task(self) -> Task:
        return self.goal.task

    @property
    def train(self) -> Loader:
        return self.loaders.train

    @property
    def val(self) -> Loader | None:
        return self.loaders.val

    @property
    def layout(self) -> Layout:
        return self.group.layout

    @property
    def device(self) -> torch.device:
        return self.group.device

    @property
    def ranks(self) -> Ranks:
        return self.group.ranks

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes files and speaks to people."""
        return self.ranks.leads

    # -- the model -----------------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """The recipe's model (`model.name`, `model.args`) on the device; its weights depend on the seed alone."""
        return self.goal.config.build(self.params.seed).to(self.device).train()

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The task's loss, with `train.label_smoothing`: the *sum* over these targets. Times a batch's weight it is
        this rank's part of the mean over the global batch."""
        return self.task.loss(answers, targets, self.params.train.label_smoothing)

    def mesh(self) -> DeviceMesh | None:
        """torch's device mesh of the layout, with the dimensions pipeline, data, shard and tensor; None for one rank.
        All ranks make it together."""
        return make_mesh(self.layout, self.device)

    def seed_step(self, step: int) -> None:
        """Make what is random in a step (dropout) a function of (seed, step, rank), so that a resumed training repeats
        it; the ranks of a tensor group draw the same. Call it at the start of step `step`, counted from 0."""
        seed_step(self.params.seed, step, self.layout.rng_stream)

    def save_model(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Take a module or its state dict as the result, compiled or not; it is published as data/model when the entry
        point returns.

        Called on every rank, or on rank 0 alone. Raises ParamsError when it isn't the recipe's model, which `evaluate`,
        `package` and whoever loads it will build; Interrupted when the training was stopped before its end.
        """
        if self.result.stopped:
            raise self.interrupted()
        if not self.leads:
            return
        state = weights(model)
        try:
            self.goal.config.build().load_state_dict(state)
        except RuntimeError as error:
            raise ParamsError(
                f"save_model: these weights don't fit model.name={self.params.model.name!r} with model.args="
                f"{self.params.model.args}, which later stages build. Train what job.build_model() gives (and unwrap "
                f"it before saving), or name your own class in model.name. {error}"
            ) from error
        self.result.saved = state

    # -- what is told --------------------------------------------------------------------------------------------

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A point of the curves after `step` steps: to MLflow, and to plots/val.csv where a name begins with `val_`,
        else to plots/train.csv. After resuming, it replaces what had come after. Does nothing but on rank 0."""
        if self.leads:
            self.result.curves.add(values, step)
            self.run.log_metrics(values, step=step)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Entries of metrics/train.json, beside the last point of each curve; JSON values. Rank 0's count."""
        self.result.metrics |= metrics

    @torch.no_grad()  # inference tensors would be no good to the next step of a model that FSDP shards
    def validate(self, model: nn.Module) -> dict[str, float]:
        """val_loss, and what else the task measures, of the whole val split over all ranks; {} without one. Every rank
        must call it, and calls the model as often: one that has no sample, with the loader's zeros. Of ranks that share
        their samples, the answers of the one that speaks for them count. Leaves `model` in training mode."""
        if self.val is None:
            return {}
        loss, hits, count = 0.0, 0.0, 0
        model = model.module if isinstance(model, DistributedDataParallel) else model
        documents = self.task.for_model(model).document_mask
        model.eval()
        for batch in self.val:
            count += batch["count"]
            beside = {name: batch[name] for name in documents.takes if name in batch} if documents else {}
            answers = model(batch["inputs"], **beside)
            if batch["weight"] and self.layout.owns_loss:
                loss += float(self.task.loss(answers, batch["targets"]))
                hits += float(self.task.hits(answers, batch["targets"]))
        model.train()
        reshard(model)
        loss, hits = self.group.sum(loss, hits)
        return {f"val_{name}": value for name, value in self.task.summary(loss / count, hits / count).items()}

    # -- stopping ------------------------------------------------------------------------------------------------

    def stopping(self) -> bool:
        """Whether to save a checkpoint and return: a rank got a signal. The same answer on every rank, so every rank
        must ask, after the same steps. Returning then, without a model, ends the stage as interrupted, not failed."""
        self.result.stopped = self.result.stopped or self.group.sum(bool(self.stop))[0] > 0
        return self.result.stopped

    def interrupted(self) -> Interrupted:
        """What the stage ends with when the entry point left because of a signal, on whichever rank."""
        signum = self.stop.signum or SIGTERM
        return Interrupted(
            f"Training stopped by {Signals(signum).name}: the entry point {self.params.train.entrypoint} left before "
            f"its end, and what it keeps in {self.checkpoint_folder} is kept. The same command goes on from there.",
            signum,
        )


_current: TrainerJob | None = None


def trainer_job() -> TrainerJob:
    """The job of this process, for a script that is the entry point. Raises ShardlineError where there is none."""
    if _current is None:
        raise ShardlineError(
            "trainer_job() is for a trainer that shardline started, and this process is none: set train.entrypoint to "
            "the script in params.yaml, and run `shardline train`."
        )
    return _current


def set_current(job: TrainerJob | None) -> None:
    global _current
    _current = job
