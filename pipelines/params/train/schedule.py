"""train.schedule: how the learning rate goes over the steps, told apart by `name`; `schedule: linear` is short for its
defaults. All but one_cycle rise over `train.warmup` first; `train.min_lr` is the share of the peak at the end."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.params.schema.choice import SHORT
from pipelines.params.schema.section import Section


class Constant(Section):
    """The peak, after the warm-up."""

    name: Literal["constant"] = "constant"


class Linear(Section):
    """Straight from the peak to min_lr of it."""

    name: Literal["linear"] = "linear"


class Cosine(Section):
    """Half a cosine from the peak to min_lr of it (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"] = "cosine"


class WarmupStableDecay(Section):
    """The peak for most of the steps, then down to min_lr of it (Hu et al. 2024, arXiv:2404.06395)."""

    name: Literal["wsd"] = "wsd"
    decay: float = Field(0.2, gt=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls."""
    shape: Literal["linear", "sqrt"] = "linear"
    """Shape of the fall, as a function of its progress p. linear: 1 - p. sqrt: 1 - √p (Hägele et al. 2024,
    arXiv:2405.18392)."""


class InverseSqrt(Section):
    """The peak times √(r / step) once the warm-up's r steps are over (Vaswani et al. 2017, arXiv:1706.03762)."""

    name: Literal["inverse_sqrt"] = "inverse_sqrt"


class Steps(Section):
    """The peak times `factor` for each of `at` that is past."""

    name: Literal["step"] = "step"
    at: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.75]
    """Shares of the steps at which the learning rate is multiplied by factor, in rising order."""
    factor: float = Field(0.1, gt=0, lt=1)
    """Factor by which the learning rate is multiplied at each share in `at`."""

    @model_validator(mode="after")
    def _rising(self) -> "Steps":
        if self.at != sorted(set(self.at)):
            raise ValueError(f"train.schedule.at={self.at}: must rise")
        return self


class OneCycle(Section):
    """Up from start to the peak, down to nearly nothing, along cosines (Smith & Topin 2018, arXiv:1708.07120).
    train.warmup and min_lr don't apply."""

    name: Literal["one_cycle"] = "one_cycle"
    rise: float = Field(0.3, gt=0, lt=1)
    """Share of the steps, at the start, over which the learning rate rises."""
    start: float = Field(0.04, gt=0, le=1)
    """Learning rate of the first step, as a share of the peak train.lr."""
    end: float = Field(4e-6, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak train.lr."""


Schedule = Annotated[
    Constant | Linear | Cosine | WarmupStableDecay | InverseSqrt | Steps | OneCycle,
    Field(discriminator="name"),
    SHORT,
]
