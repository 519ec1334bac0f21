"""train.optimizer: each optimiser with its own parameters, told apart by `name`; `optimizer: sgd` is short for its
defaults. The learning rate and the weight decay are `train.lr` and `train.weight_decay` for all of them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipelines.params.schema.choice import SHORT
from pipelines.params.schema.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Beta], Field(min_length=2, max_length=2)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Descent(Section):
    """What one optimiser takes. `closure`: it evaluates the loss of a batch several times a step."""

    closure: ClassVar[bool] = False


class SGD(Descent):
    """Stochastic gradient descent; weight decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    """Share of the last update that is taken again; 0: none."""
    nesterov: bool = False
    """Look ahead along the momentum (Nesterov 1983; Sutskever et al. 2013)."""


class Adam(Descent):
    """Kingma & Ba 2015, arXiv:1412.6980; weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    betas: Betas = [0.9, 0.999]
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (Reddi et al. 2018)."""


class AdamW(Descent):
    """Loshchilov & Hutter 2019, arXiv:1711.05101: Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    betas: Betas = [0.9, 0.95]
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (Reddi et al. 2018)."""


class NAdam(Descent):
    """Dozat 2016: Adam with Nesterov's momentum; decoupled weight decay."""

    name: Literal["nadam"] = "nadam"
    betas: Betas = [0.9, 0.999]
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    momentum_decay: float = Field(4e-3, ge=0)
    """How fast the momentum rises to betas[0]."""


class RMSprop(Descent):
    """Hinton's lecture 6e, 2012; weight decay is added to the gradient."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Share = 0.99
    """Decay rate of the mean square."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    momentum: Share = 0.0
    """Share of the last update that is taken again."""
    centered: bool = False
    """Divide by the deviation from the mean gradient (Graves 2013) instead of by the mean square's root."""


class Adagrad(Descent):
    """Duchi, Hazan & Singer 2011; weight decay is added to the gradient."""

    name: Literal["adagrad"] = "adagrad"
    lr_decay: float = Field(0.0, ge=0)
    """The rate of step t is divided by 1 + t · lr_decay, on top of train.schedule."""
    initial_accumulator_value: float = Field(0.0, ge=0)
    """Of the sum of squares."""
    eps: Positive = 1e-10
    """Added to the denominator."""


class Adadelta(Descent):
    """Zeiler 2012, arXiv:1212.5701; weight decay is added to the gradient. Its natural train.lr is 1."""

    name: Literal["adadelta"] = "adadelta"
    rho: Share = 0.9
    """Decay rate of the mean squares."""
    eps: Positive = 1e-6
    """Added under the roots; the first updates are about as long as its root."""


class Muon(Descent):
    """Jordan et al. 2024: momentum made orthogonal, for the hidden matrices; AdamW for embeddings, the last layer,
    biases and norms. Decoupled weight decay."""

    name: Literal["muon"] = "muon"
    momentum: Share = 0.95
    """Of the matrices."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    ns_steps: int = Field(5, ge=1, lt=100)
    """Iterations of Newton and Schulz."""
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Of a matrix's update. match_rms_adamw: as long as AdamW's, so that one train.lr fits both (Liu et al. 2025,
    arXiv:2502.16982). original: √max(1, rows / columns), with a train.lr of about 0.02."""
    betas: Betas = [0.9, 0.95]
    """AdamW's, for the rest."""
    eps: Positive = 1e-8
    """AdamW's, for the rest."""
    rest_lr: Positive = 1.0
    """The rest's learning rate, as a multiple of train.lr."""


class LineSearch(Descent):
    """Several iterations on each batch, each with a strong-Wolfe line search. Weight decay is part of the loss that is
    searched along; train.clip_norm and clip_value don't apply. train.lr is the first step that a search tries."""

    closure: ClassVar[bool] = True
    iterations: int = Field(4, ge=1, le=1000)
    """Directions searched along in each batch."""
    evaluations: int = Field(12, ge=2, le=1000)
    """Passes over the batch that one search may take."""
    c1: float = Field(1e-4, gt=0, lt=0.5)
    """Sufficient decrease: f(t) ≤ f(0) + c1 · t · f'(0)."""
    c2: float = Field(0.9, gt=0, lt=1)
    """Curvature: |f'(t)| ≤ c2 · |f'(0)|."""
    tolerance: float = Field(1e-9, ge=0)
    """A batch is done once the norm of its gradient is no larger."""


class LBFGS(LineSearch):
    """Liu & Nocedal 1989: limited-memory BFGS."""

    name: Literal["lbfgs"] = "lbfgs"
    history: int = Field(10, ge=1, le=100)
    """Pairs of steps and gradient changes that are kept; each costs twice the memory of the weights."""


class ConjugateGradient(LineSearch):
    """Nonlinear conjugate gradient."""

    name: Literal["cg"] = "cg"
    formula: Literal["polak_ribiere", "hager_zhang"] = "polak_ribiere"
    """Of β: Polak & Ribière 1969, never negative (Gilbert & Nocedal 1992), or Hager & Zhang 2005."""
    carry: bool = False
    """Go on along the last batch's direction in the next one; for batches that are (nearly) the whole data."""
    c2: float = Field(0.4, gt=0, lt=0.5)
    """Curvature: |f'(t)| ≤ c2 · |f'(0)|; below 1/2, so that every direction descends."""


Optimizer = Annotated[
    SGD | Adam | AdamW | NAdam | RMSprop | Adagrad | Adadelta | Muon | LBFGS | ConjugateGradient,
    Field(discriminator="name"),
    SHORT,
]
