"""What else a step of training does: train.ema, train.nonfinite."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.params.schema.choice import SHORT
from pipelines.params.schema.section import Section


class Ema(Section):
    """An exponential moving average of the weights."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Share of the moving average that each update keeps; the average reaches back about 1 / (1 - decay) updates."""
    every: int = Field(1, ge=1)
    """Steps between updates of the moving average."""
    warmup: bool = True
    """Limit the decay of update n to (1 + n) / (10 + n), so that the average follows the weights quickly at first."""
    evaluate: bool = True
    """Measure the moving average on the val split. false: the current weights."""
    final: bool = True
    """Publish the moving average as the model. false: the last weights."""


class Stop(Section):
    """End the training; its last checkpoint stays."""

    name: Literal["stop"] = "stop"


class Skip(Section):
    """Leave the weights as they are and go on with the next batch."""

    name: Literal["skip"] = "skip"
    limit: int = Field(5, ge=1)
    """Steps in a row that may be skipped because they were not finite; one more stops the training."""


class BackOff(Section):
    """Go back to the last checkpoint, and on from there with a lower learning rate."""

    name: Literal["backoff"] = "backoff"
    factor: float = Field(0.5, gt=0, lt=1)
    """Factor by which the learning rate of all later steps is multiplied each time that training goes back to a
    checkpoint."""
    limit: int = Field(3, ge=1)
    """Times that a training may go back to a checkpoint; the next step that is not finite stops it."""


NonFinite = Annotated[Stop | Skip | BackOff, Field(discriminator="name"), SHORT]
