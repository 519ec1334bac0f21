"""From `train.loss` and `train.loss_args` to what training minimises.

The contract of a loss, ours or anybody's: `loss(answers, targets, **train.loss_args)` returns the *sum* over the
targets, a scalar. Training divides by the number of targets of the global batch, so that neither ranks nor pieces of a
batch change the result; a mean would. answers are float32 logits [n, classes] and targets int64 [n] (of text, a target
is a token); of a regression both are float32 [n], in units of the target's standard deviation.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.models.importing import import_named
from pipelines.models.tasks import Criterion, Task
from pipelines.params import Train, suggestion
from storage.errors import ParamsError

AUTO = "auto"


def cross_entropy(answers: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(answers, targets, reduction="sum")


def focal(answers: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy, weighted by (1 - p)^gamma: less for what is already right (Lin et al. 2017, arXiv:1708.02002)."""
    each = F.cross_entropy(answers, targets, reduction="none")
    return (each * (1 - torch.exp(-each)) ** gamma).sum()


def squared(answers: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(answers, targets, reduction="sum")


def absolute(answers: Tensor, targets: Tensor) -> Tensor:
    return F.l1_loss(answers, targets, reduction="sum")


def huber(answers: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Squared up to `delta` standard deviations, absolute beyond (Huber 1964)."""
    return F.huber_loss(answers, targets, reduction="sum", delta=delta)


#: Of classes and tokens, and of numbers.
CLASSES: Mapping[str, Criterion] = {"cross_entropy": cross_entropy, "focal": focal}
NUMBERS: Mapping[str, Criterion] = {"squared": squared, "absolute": absolute, "huber": huber}


def with_loss(task: Task, train: Train, spec: Mapping[str, Any]) -> Task:
    """`task` with the loss that `train` names; auto leaves it cross-entropy or squared error.

    Raises ParamsError: unknown, of another task, wrong arguments, or not a sum over the targets.
    """
    name, args = train.loss, train.loss_args
    if name == AUTO or (name == "cross_entropy" and task.name != "regression"):
        if args:
            raise ParamsError(f"train.loss_args={args}: train.loss={name!r} takes none.")
        return task
    criterion = _find(name, task)
    if train.label_smoothing:
        raise ParamsError(
            f"train.label_smoothing={train.label_smoothing:g} goes with train.loss=cross_entropy only, not with "
            f"{name!r}: set it to 0, or let your loss do it."
        )
    named = list(inspect.signature(criterion).parameters)[2:]
    for arg in args:
        if arg not in named and "kwargs" not in named:
            raise ParamsError(f"train.loss_args.{arg}: loss {name!r} takes no such argument{suggestion(arg, named)}")
    criterion = partial(criterion, **args)
    _check_sum(name, criterion, task, spec)
    return replace(task, criterion=criterion)


def _find(name: str, task: Task) -> Criterion:
    own = NUMBERS if task.name == "regression" else CLASSES
    if ":" in name:
        found: Criterion = import_named(name, "train.loss")
        if not callable(found):
            raise ParamsError(f"train.loss={name!r}: {found!r} is no function.")
        return found
    if name in own:
        return own[name]
    raise ParamsError(f"train.loss={name!r} is not for {task.name}: that has {', '.join(own)}.")


def _check_sum(name: str, criterion: Criterion, task: Task, spec: Mapping[str, Any]) -> None:
    """Try it on four targets together, and on one and three of them."""
    random = torch.Generator().manual_seed(0)
    if task.name == "regression":
        answers, targets = torch.randn(4, generator=random), torch.randn(4, generator=random)
    else:
        classes = spec.get("vocab_size") or len(spec["classes"])
        answers = torch.randn(4, classes, generator=random)
        targets = torch.randint(classes, (4,), generator=random)
    try:
        whole, one, three = (criterion(answers[i:j], targets[i:j]) for i, j in ((0, 4), (0, 1), (1, 4)))
    except Exception as error:  # whatever a user's function raises is about what it is given
        raise ParamsError(
            f"train.loss={name!r} cannot be called with answers {list(answers.shape)} and targets "
            f"{list(targets.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(whole, Tensor) or whole.ndim:
        what = f"a tensor of shape {list(whole.shape)}" if isinstance(whole, Tensor) else repr(whole)
        raise ParamsError(f"train.loss={name!r} returned {what}, but must return a scalar, the sum over the targets.")
    if not torch.isclose(whole, one + three, rtol=1e-3, atol=1e-6):
        raise ParamsError(
            f"train.loss={name!r} must return the sum over the targets, but gave {float(whole):.4g} for four of them, "
            f"and {float(one):.4g} + {float(three):.4g} for one and the other three. Return the sum instead of the "
            "mean: training divides by the number of targets of the global batch."
        )
