"""From batches to a model: model, train."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.params.schema.registry import Registry
from pipelines.params.schema.section import Section
from pipelines.params.train.checkpoints import Checkpoints
from pipelines.params.train.communication import Communication
from pipelines.params.train.optimizer import AdamW, Optimizer
from pipelines.params.train.parallel import Parallel
from pipelines.params.train.schedule import Cosine, Schedule
from pipelines.params.train.step import Ema, NonFinite, Stop

ENTRYPOINT = r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*|.+\.py)$"


MODELS = Registry("model.name", "pipelines.models.members.architectures", apart="model.args")
LOSSES = Registry(
    "train.loss", "pipelines.models.members.losses", ("auto",), apart="train.loss_args", own="package.module:name"
)


class Model(Section):
    """The model."""

    name: Annotated[str, AfterValidator(MODELS.check_name), MODELS] = "mlp"
    """Model: one of Shardline's, or the import path package.module:Class of your own (docs/models.md)."""
    args: Annotated[dict[str, Any], AfterValidator(MODELS.check_args("name"))] = Field({}, validate_default=True)
    """The model's own parameters; of a torch.nn.Module of your own, keyword arguments of its constructor."""


class Train(Section):
    """shards → model."""

    entrypoint: str | None = Field(None, pattern=ENTRYPOINT)
    """Your own trainer instead of the built-in loop: package.module:function, or a script.py
    (docs/your-own-trainer.md). None: the built-in loop."""
    args: dict[str, Any] = {}
    """Keyword arguments of the function or script that train.entrypoint names."""
    optimizer: Optimizer = AdamW()
    """Optimiser: its name, or {name, …} with its parameters (docs/optimizers.md)."""
    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate; train.schedule says how it changes over the steps."""
    schedule: Schedule = Cosine()
    """Learning rate schedule: its name, or {name, …} with its parameters (docs/optimizers.md)."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps, at the start, over which the learning rate rises linearly from 0."""
    min_lr: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end of the schedule, as a share of the peak train.lr."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay, on matrices only. Decoupled with adamw, nadam and muon; part of the gradient or the loss
    otherwise."""
    betas: list[float] | None = Field(None, min_length=2, max_length=2)
    """Short for train.optimizer.betas of adam, adamw, nadam and muon. None: the optimiser's own."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; a longer gradient is scaled down to it. None: not clipped."""
    clip_value: float | None = Field(None, gt=0)
    """Largest absolute value of an element of the gradient; applied before clip_norm. None: not clipped."""
    ema: Ema | None = None
    """Exponential moving average of the weights, e.g. {decay: 0.999}. None: no average."""
    nonfinite: NonFinite = Stop()
    """What to do at a step whose loss or gradient is not finite. stop: end the training. skip: leave the weights as
    they are. backoff: return to the last checkpoint with a lower learning rate. A name, or {name, …} with
    parameters."""
    accumulate: int = Field(1, ge=1)
    """Pieces into which a batch is cut to save memory (gradient accumulation); the step is the same up to rounding. 1:
    not cut."""
    loss: Annotated[str, AfterValidator(LOSSES.check_name), LOSSES] = "auto"
    """Loss: auto, cross_entropy or focal for classes and tokens; squared, absolute or huber for numbers; or the import
    path of your own, which sums over the targets. auto: cross_entropy or squared."""
    loss_args: Annotated[dict[str, Any], AfterValidator(LOSSES.check_args("loss"))] = Field({}, validate_default=True)
    """The loss's own parameters; of a function of your own, its keyword arguments (docs/models.md)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target's probability that is spread over the other classes. 0: none."""
    steps: int | None = Field(None, ge=1)
    """Length of the training in optimiser steps. Give either this or train.epochs."""
    epochs: float | None = Field(None, gt=0)
    """Length of the training in passes over the train split. Give either this or train.steps."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on the val split."""
    eval_batches: int | None = Field(None, ge=1)
    """Batches of the val split that each evaluation during training reads. None: the whole val split."""
    patience: int | None = Field(None, ge=1)
    """Early stopping: evaluations in a row without a better val loss after which training stops. None: never."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    checkpoints: Checkpoints = Checkpoints()
    """How checkpoints are written and kept."""
    log_every: int = Field(10, ge=1)
    """Steps between points of the logged curves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products. auto: bf16 where the accelerator supports it, else fp32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")
    """Device that a rank trains on: cpu, mps, cuda, xpu, or one of several as in cuda:1. auto: the first of cuda, mps,
    xpu, cpu that is there."""
    ranks: int = Field(1, ge=1, le=4096)
    """Ranks (training processes) on this machine; torchrun starts them if there are several."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each rank. None: the machine's cores divided by its ranks."""
    parallel: Parallel = Parallel()
    """How model and batches are laid out over the ranks."""
    communication: Communication = Communication()
    """What the ranks send each other, and how often."""

    price_per_hour: float | None = Field(None, ge=0)
    """Price of one hour of a rank's share of its machine (the machine's price / the ranks on it), in your currency; for
    the metric spent/cost. None: no cost is computed."""

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if self.args and self.entrypoint is None:
            raise ValueError("train.args are the entry point's: set train.entrypoint too (the model's are model.args)")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        if self.betas is not None:
            self._check_betas(self.betas)
        self._check_optimizer()
        self._check_communication()
        if self.parallel.pipeline > 1 and self.accumulate > 1:
            raise ValueError(
                f"accumulate = {self.accumulate} with parallel.pipeline = {self.parallel.pipeline}: a pipeline's "
                "pieces are its microbatches. Set train.accumulate to 1, and train.parallel.microbatches"
            )
        return self

    def _check_optimizer(self) -> None:
        name = self.optimizer.name
        if self.optimizer.closure and self.precision == "fp16":
            raise ValueError(
                f"train.precision=fp16 scales the loss step by step, which the line search of {name} would take for "
                "the loss itself: set it to bf16 or fp32"
            )
        if self.parallel.pipeline > 1 and (self.optimizer.closure or name == "muon"):
            raise ValueError(
                f"train.optimizer={name} must see the whole depth of the model, but parallel.pipeline = "
                f"{self.parallel.pipeline} cuts it: set that to 1 (data, shard and tensor work), or take adamw"
            )

        local = self.communication.local_steps
        if self.optimizer.closure and (local > 1 or self.communication.compression == "powersgd"):
            raise ValueError(
                f"train.optimizer={name} searches along the gradient of the global batch, which "
                "communication.local_steps and powersgd don't give: leave these at their defaults"
            )
        if self.ema is not None and self.ema.every % local:
            raise ValueError(
                f"ema.every = {self.ema.every} is no multiple of communication.local_steps = {local}: copies have the "
                f"same weights only when they meet. Set train.ema.every to {-(-self.ema.every // local) * local}"
            )

    def _check_betas(self, betas: list[float]) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"train.betas={betas}: each must be in [0, 1)")
        if "betas" not in type(self.optimizer).model_fields:
            raise ValueError(f"train.betas={betas}: {self.optimizer.name} has none. Leave train.betas out")
        default = type(self.optimizer).model_fields["betas"].default
        if getattr(self.optimizer, "betas") not in (default, betas):  # noqa: B009 - not all optimisers have it
            raise ValueError("train.betas and train.optimizer.betas differ: give one of them")

    def _check_communication(self) -> None:
        communication, parallel = self.communication, self.parallel
        cut = {name: size for name in ("shard", "tensor", "pipeline") if (size := getattr(parallel, name)) > 1}
        if cut and communication.local_steps > 1:
            raise ValueError(
                f"communication.local_steps = {communication.local_steps}, but parallel = {cut}: copies that train by "
                "themselves must hold the whole model. Set these to 1, or train.communication.local_steps to 1"
            )
        if communication.compression != "none" and (parallel.shard > 1 or parallel.tensor > 1):
            raise ValueError(
                f"communication.compression = {communication.compression}, but parallel = {cut}: only copies of a "
                "whole model (DDP) compress their gradients. Set train.communication.compression to none; "
                "train.precision: bf16 halves what FSDP gathers"
            )
        for name, value in (
            ("communication.local_after", communication.local_after),
            ("eval_every", self.eval_every),
            ("checkpoint_every", self.checkpoint_every),
            ("checkpoints.every", self.checkpoints.every or self.checkpoint_every),
        ):
            if value % communication.local_steps:
                best = -(-value // communication.local_steps) * communication.local_steps
                raise ValueError(
                    f"{name} = {value} is no multiple of communication.local_steps = {communication.local_steps}: "
                    f"copies are the same only when they meet. Set train.{name} to {best}"
                )
