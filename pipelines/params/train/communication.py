"""What the copies of a model send each other, and how often: train.communication."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section


class Communication(Section):
    """How copies that hold the whole model (train.parallel: data only) exchange gradients and weights.
    docs/communication.md has the trade-offs."""

    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """Compression of the gradients that ranks send each other. fp16, bf16: half the bytes. powersgd: two thin factors
    of each matrix. none: as they are."""
    powersgd_rank: int = Field(2, ge=1, le=256)
    """Rank of PowerSGD's factors (their number of columns): a higher rank sends more bytes and loses less."""
    powersgd_after: int = Field(10, ge=2)
    """First steps of a training that send whole gradients, before PowerSGD begins."""
    bucket_mb: float = Field(25.0, gt=0, le=4096)
    """MiB of gradients that are sent together. Small buckets start early, large ones use the bandwidth better."""
    overlap: bool = True
    """Send gradients while the backward pass still runs. false: all of them at its end, for comparison."""
    local_steps: int = Field(1, ge=1, le=100_000)
    """Steps that each copy of the model takes by itself before the copies are averaged (local SGD). 1: gradients are
    averaged at every step."""
    local_after: int = Field(0, ge=0)
    """First steps of a training in which gradients are averaged at every step, before local steps begin (post-local
    SGD). 0: none."""
    outer_lr: float = Field(1.0, gt=0, le=10)
    """Learning rate of the outer optimiser, which applies the mean update of the copies after local steps. 1, with
    outer_momentum 0: plain averaging."""
    outer_momentum: float = Field(0.0, ge=0, lt=1)
    """Nesterov momentum of the outer optimiser of local steps. DiLoCo: outer_lr 0.7, outer_momentum 0.9. 0: none."""

    @model_validator(mode="after")
    def _sensible(self) -> "Communication":
        outer = self.outer_lr != 1.0 or self.outer_momentum != 0.0
        if self.local_steps == 1 and (outer or self.local_after):
            raise ValueError(
                f"local_steps = 1, but local_after = {self.local_after}, outer_lr = {self.outer_lr}, outer_momentum = "
                f"{self.outer_momentum}: these are local SGD's. Set train.communication.local_steps to 2 or more"
            )
        if self.local_steps > 1 and self.compression == "powersgd":
            raise ValueError(
                f"compression = powersgd, but local_steps = {self.local_steps}: it compresses gradients, and local "
                "copies send their weights. Set one of them to its default"
            )
        return self
