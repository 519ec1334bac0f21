"""From `train.loss` and `train.loss_args` to what training minimises.

The contract of a loss, ours or anybody's: `loss(answers, targets)` returns the *sum* over the targets, a scalar. A
function of the user's own also gets `train.loss_args`, by keyword; a `Loss` (`member.py`) has them as its fields.
Training divides by the number of targets of the global batch, so that neither ranks nor pieces of a batch change the
result; a mean would. answers are float32 logits [n, classes] and targets int64 [n] (of text, a target is a token); of a
regression both are float32 [n], in units of the target's standard deviation.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.models.member import Loss
from pipelines.models.tasks import Criterion, Task
from pipelines.params import Train, suggestion
from pipelines.params.train.training import LOSSES
from storage.errors import ParamsError

AUTO = "auto"


def with_loss(task: Task, train: Train, spec: Mapping[str, Any]) -> Task:
    """`task` with the loss that `train` names; auto leaves it cross-entropy or squared error.

    Raises ParamsError: unknown, of another task, wrong arguments, or not a sum over the targets.
    """
    name, args = train.loss, train.loss_args
    if name == AUTO or (name == "cross_entropy" and task.name != "regression"):
        return task
    criterion = _find(name, args, task)
    if train.label_smoothing:
        raise ParamsError(
            f"train.label_smoothing={train.label_smoothing:g} goes with train.loss=cross_entropy only, not with "
            f"{name!r}: set it to 0, or let your loss do it."
        )
    _check_sum(name, criterion, task, spec)
    return replace(task, criterion=criterion)


def _find(name: str, args: Mapping[str, Any], task: Task) -> Criterion:
    found = LOSSES.find(name)
    if isinstance(found, type) and issubclass(found, Loss):
        if task.name not in found.tasks:
            own = [loss for loss, member in LOSSES.members.items() if task.name in member.tasks]  # type: ignore[attr-defined]
            raise ParamsError(f"train.loss={name!r} is not for {task.name}: that has {', '.join(own)}.")
        return LOSSES.with_args(found, args).criterion()
    if not callable(found):
        raise ParamsError(f"train.loss={name!r}: {found!r} is no function.")
    named = list(inspect.signature(found).parameters)[2:]
    for arg in args:
        if arg not in named and "kwargs" not in named:
            raise ParamsError(f"train.loss_args.{arg}: loss {name!r} takes no such argument{suggestion(arg, named)}")
    return partial(found, **args)


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
