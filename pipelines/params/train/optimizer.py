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
    """Share of the last update that is added to the next one. 0: no momentum."""
    nesterov: bool = False
    """Use Nesterov momentum, which looks ahead along the momentum (Nesterov 1983; Sutskever et al. 2013)."""


class Adam(Descent):
    """Kingma & Ba 2015, arXiv:1412.6980; weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    betas: Betas = [0.9, 0.999]
    """Decay rates of the first and second moment of the gradient."""
    eps: Positive = 1e-8
    """Small number added to the denominator, against division by zero."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (AMSGrad, Reddi et al. 2018)."""


class AdamW(Descent):
    """Loshchilov & Hutter 2019, arXiv:1711.05101: Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    betas: Betas = [0.9, 0.95]
    """Decay rates of the first and second moment of the gradient."""
    eps: Positive = 1e-8
    """Small number added to the denominator, against division by zero."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (AMSGrad, Reddi et al. 2018)."""


class NAdam(Descent):
    """Dozat 2016: Adam with Nesterov's momentum; decoupled weight decay."""

    name: Literal["nadam"] = "nadam"
    betas: Betas = [0.9, 0.999]
    """Decay rates of the first and second moment of the gradient."""
    eps: Positive = 1e-8
    """Small number added to the denominator, against division by zero."""
    momentum_decay: float = Field(4e-3, ge=0)
    """How fast the momentum rises to betas[0]: a larger number is faster."""


class RMSprop(Descent):
    """Hinton's lecture 6e, 2012; weight decay is added to the gradient."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Share = 0.99
    """Decay rate of the gradient's mean square."""
    eps: Positive = 1e-8
    """Small number added to the denominator, against division by zero."""
    momentum: Share = 0.0
    """Share of the last update that is added to the next one. 0: no momentum."""
    centered: bool = False
    """Divide by the standard deviation of the gradient (Graves 2013) instead of by the root of its mean square."""


class Adagrad(Descent):
    """Duchi, Hazan & Singer 2011; weight decay is added to the gradient."""

    name: Literal["adagrad"] = "adagrad"
    lr_decay: float = Field(0.0, ge=0)
    """The learning rate of step t is divided by 1 + t · lr_decay, on top of train.schedule. 0: not at all."""
    initial_accumulator_value: float = Field(0.0, ge=0)
    """Value at which the sum of squared gradients starts."""
    eps: Positive = 1e-10
    """Small number added to the denominator, against division by zero."""


class Adadelta(Descent):
    """Zeiler 2012, arXiv:1212.5701; weight decay is added to the gradient. Its natural train.lr is 1."""

    name: Literal["adadelta"] = "adadelta"
    rho: Share = 0.9
    """Decay rate of the mean squares of gradients and updates."""
    eps: Positive = 1e-6
    """Small number added under the square roots; the first updates are about as long as its root."""


class Muon(Descent):
    """Jordan et al. 2024: momentum made orthogonal, for the hidden matrices; AdamW for embeddings, the last layer,
    biases and norms. Decoupled weight decay."""

    name: Literal["muon"] = "muon"
    momentum: Share = 0.95
    """Momentum of the updates of hidden matrices."""
    nesterov: bool = True
    """Use Nesterov momentum, which looks ahead along the momentum."""
    ns_steps: int = Field(5, ge=1, lt=100)
    """Newton-Schulz iterations that make each matrix' update orthogonal."""
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Length of a matrix' update. match_rms_adamw: as long as AdamW's, so that one train.lr fits both (Liu et al. 2025,
    arXiv:2502.16982). original: √max(1, rows / columns), with a train.lr of about 0.02."""
    betas: Betas = [0.9, 0.95]
    """Decay rates of the first and second moment in AdamW, which updates embeddings, the last layer, biases and
    norms."""
    eps: Positive = 1e-8
    """Small number added to the denominator in AdamW, which updates embeddings, the last layer, biases and norms."""
    rest_lr: Positive = 1.0
    """Learning rate of embeddings, the last layer, biases and norms, as a multiple of train.lr."""


class LineSearch(Descent):
    """Several iterations on each batch, each with a strong-Wolfe line search. Weight decay is part of the loss that is
    searched along; train.clip_norm and clip_value don't apply. train.lr is the first step that a search tries."""

    closure: ClassVar[bool] = True
    iterations: int = Field(4, ge=1, le=1000)
    """Line searches on each batch, each along a new direction."""
    evaluations: int = Field(12, ge=2, le=1000)
    """Most passes over the batch that one line search may take."""
    c1: float = Field(1e-4, gt=0, lt=0.5)
    """Sufficient decrease that a line search asks for (first Wolfe condition): f(t) ≤ f(0) + c1 · t · f'(0)."""
    c2: float = Field(0.9, gt=0, lt=1)
    """Curvature that a line search asks for (second Wolfe condition): |f'(t)| ≤ c2 · |f'(0)|."""
    tolerance: float = Field(1e-9, ge=0)
    """Norm of a batch's gradient at or below which its line searches end."""


class LBFGS(LineSearch):
    """Liu & Nocedal 1989: limited-memory BFGS."""

    name: Literal["lbfgs"] = "lbfgs"
    history: int = Field(10, ge=1, le=100)
    """Pairs of updates and gradient changes that are kept; each takes twice the memory of the weights."""


class ConjugateGradient(LineSearch):
    """Nonlinear conjugate gradient."""

    name: Literal["cg"] = "cg"
    formula: Literal["polak_ribiere", "hager_zhang"] = "polak_ribiere"
    """Formula of β. polak_ribiere: Polak & Ribière 1969, never negative (Gilbert & Nocedal 1992). hager_zhang: Hager &
    Zhang 2005."""
    carry: bool = False
    """Start on each batch along the last direction of the batch before; for batches that are (nearly) the whole
    data."""
    c2: float = Field(0.4, gt=0, lt=0.5)
    """Curvature that a line search asks for (second Wolfe condition): |f'(t)| ≤ c2 · |f'(0)|; below 1/2, so that every
    direction descends."""


Optimizer = Annotated[
    SGD | Adam | AdamW | NAdam | RMSprop | Adagrad | Adadelta | Muon | LBFGS | ConjugateGradient,
    Field(discriminator="name"),
    SHORT,
]
