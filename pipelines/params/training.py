"""From batches to a model: model, train."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.params.checkpoints import Checkpoints
from pipelines.params.network import Network
from pipelines.params.parallel import Parallel
from pipelines.params.section import Section


class Model(Section):
    """The model."""

    name: str = "mlp"
    """transformer, mlp, cnn, or an import path package.module:Class of a torch.nn.Module."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor."""


class Train(Section):
    """shards → model."""

    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate of AdamW."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    min_lr: float = Field(0.1, ge=0, le=1)
    """Share of the peak at which the cosine ends."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment, each in [0, 1)."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: not clipped."""
    accumulate: int = Field(1, ge=1)
    """Pieces into which a batch is cut to save memory; the step is the same up to rounding."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over the other classes."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps. Give this or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the train split. Give this or steps."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on the val split."""
    eval_batches: int | None = Field(None, ge=1)
    """Batches of such an evaluation; None: the whole val split."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better val loss after which training stops; None: never."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    checkpoints: Checkpoints = Checkpoints()
    """How checkpoints are written and kept."""
    log_every: int = Field(10, ge=1)
    """Steps between points of the logged curves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the matrix products. auto: bf16 where the accelerator has it, else fp32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")
    """auto: the first of cuda, mps, xpu, cpu that is there."""
    ranks: int = Field(1, ge=1, le=4096)
    """Processes on this machine, started by torchrun when more than one."""
    threads: int | None = Field(None, ge=1)
    """Threads of a rank on CPU; None: the cores shared out over the ranks."""
    parallel: Parallel = Parallel()
    """How model and batches are laid out over the ranks."""
    network: Network = Network()
    """What the ranks send each other, and how often."""

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas={self.betas}: each must be in [0, 1)")
        self.parallel.data_for(self.ranks)
        self._check_network()
        if self.parallel.pipeline > 1 and self.accumulate > 1:
            raise ValueError(
                f"accumulate = {self.accumulate} with parallel.pipeline = {self.parallel.pipeline}: a pipeline's "
                "pieces are its microbatches. Set train.accumulate to 1, and train.parallel.microbatches"
            )
        return self

    def _check_network(self) -> None:
        network, parallel = self.network, self.parallel
        cut = {name: size for name in ("shard", "tensor", "pipeline") if (size := getattr(parallel, name)) > 1}
        if cut and network.local_steps > 1:
            raise ValueError(
                f"network.local_steps = {network.local_steps}, but parallel = {cut}: copies that train by themselves "
                "must hold the whole model. Set these to 1, or train.network.local_steps to 1"
            )
        if network.compression != "none" and (parallel.shard > 1 or parallel.tensor > 1):
            raise ValueError(
                f"network.compression = {network.compression}, but parallel = {cut}: only copies of a whole model "
                "(DDP) compress their gradients. Set train.network.compression to none; train.precision: bf16 halves "
                "what FSDP gathers"
            )
        for name, value in (
            ("network.local_after", network.local_after),
            ("eval_every", self.eval_every),
            ("checkpoint_every", self.checkpoint_every),
            ("checkpoints.every", self.checkpoints.every or self.checkpoint_every),
        ):
            if value % network.local_steps:
                best = -(-value // network.local_steps) * network.local_steps
                raise ValueError(
                    f"{name} = {value} is no multiple of network.local_steps = {network.local_steps}: copies are the "
                    f"same only when they meet. Set train.{name} to {best}"
                )
