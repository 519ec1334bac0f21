"""With which learning rate and weight decay each optimiser is compared, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """`weight_decay` None: the recipe's, which is meant for decoupled weight decay."""

    lr: float
    weight_decay: float | None
    why: str


#: By name of `train.optimizer`; its other parameters are their defaults.
CONTENDERS = {
    "sgd": Contender(0.1, 5e-4, "momentum 0.9, as for residual networks (He et al. 2015, arXiv:1512.03385)"),
    "adam": Contender(3e-3, 0.0, "the recipes' rate of AdamW; L2 does not suit it (arXiv:1711.05101)"),
    "adamw": Contender(3e-3, None, "the recipes' own"),
    "nadam": Contender(2e-3, None, "Dozat's and torch's default"),
    "rmsprop": Contender(1e-3, 0.0, "Hinton's lecture 6e"),
    "adagrad": Contender(1e-2, 0.0, "torch's default (Duchi et al. 2011)"),
    "adadelta": Contender(1.0, 0.0, "Zeiler 2012 has none, which is 1"),
    "muon": Contender(3e-3, None, "AdamW's rate, which match_rms_adamw makes fit (arXiv:2502.16982)"),
    "lbfgs": Contender(1.0, 0.0, "the unit step of a quasi-Newton method (Nocedal & Wright 2006)"),
    "cg": Contender(0.1, 0.0, "just the first step that is tried; the line search finds the rest"),
}
