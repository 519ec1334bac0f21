"""What else a step of training does: train.ema, train.nonfinite."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.params.schema.choice import SHORT
from pipelines.params.schema.section import Section


class Ema(Section):
    """An exponential moving average of the weights."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Share of the average that stays at each update; its memory is about 1 / (1 - decay) updates."""
    every: int = Field(1, ge=1)
    """Steps between updates."""
    warmup: bool = True
    """Start with a shorter memory: the decay of update n is at most (1 + n) / (10 + n)."""
    evaluate: bool = True
    """Measure the average on the val split rather than the last weights."""
    final: bool = True
    """The average becomes the model."""


class Stop(Section):
    """End the training; its last checkpoint stays."""

    name: Literal["stop"] = "stop"


class Skip(Section):
    """Leave the weights as they are and go on with the next batch."""

    name: Literal["skip"] = "skip"
    limit: int = Field(5, ge=1)
    """Steps that may be skipped in a row; one more stops the training."""


class BackOff(Section):
    """Go back to the last checkpoint, and on from there with a lower learning rate."""

    name: Literal["backoff"] = "backoff"
    factor: float = Field(0.5, gt=0, lt=1)
    """What the learning rate of all later steps is multiplied with, each time."""
    limit: int = Field(3, ge=1)
    """How often, in all; the next time stops the training."""


NonFinite = Annotated[Stop | Skip | BackOff, Field(discriminator="name"), SHORT]
