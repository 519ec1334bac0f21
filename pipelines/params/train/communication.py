"""What the copies of a model send each other, and how often: train.communication."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section


class Communication(Section):
    """Of copies that hold the whole model (train.parallel: data only). docs/communication.md has the trade-offs."""

    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """Of gradients as they are sent. fp16, bf16: half the bytes; powersgd: two thin factors of each matrix."""
    powersgd_rank: int = Field(2, ge=1, le=256)
    """Columns of PowerSGD's factors: more send more and lose less."""
    powersgd_after: int = Field(10, ge=2)
    """Steps with whole gradients before PowerSGD begins."""
    bucket_mb: float = Field(25.0, gt=0, le=4096)
    """MiB of gradients that travel together: small ones start early, large ones use the bandwidth better."""
    overlap: bool = True
    """Send while the backward pass still runs. False: everything at its end, for comparison."""
    local_steps: int = Field(1, ge=1, le=100_000)
    """Steps that each copy takes by itself before the copies are averaged (local SGD). 1: gradients at every step."""
    local_after: int = Field(0, ge=0)
    """Steps before that with gradients averaged at every one (post-local SGD)."""
    outer_lr: float = Field(1.0, gt=0, le=10)
    """Of what the copies moved on average, the part that is taken. 1 with momentum 0 is the plain average."""
    outer_momentum: float = Field(0.0, ge=0, lt=1)
    """Nesterov momentum of these moves. DiLoCo: outer_lr 0.7, outer_momentum 0.9."""

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
