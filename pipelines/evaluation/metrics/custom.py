"""The metrics of `evaluate.metrics`: torchmetrics' by name, or anybody's class by import path.

The contract of a metric: `update(answers, targets)` with each batch, then `compute()`, which gives a number or one
number a class. Both are tensors on the CPU. Classification: probabilities float32 [n, classes] and classes int64 [n];
regression: both float32 [n], in the target's unit; language: logits float32 [n, vocab_size] and tokens int64 [n]
(torchmetrics' text metrics, such as Perplexity, get them as [1, n, vocab_size] and [1, n]).
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.metrics.names import RESERVED, metric_key, no_such_metric, own_figures
from pipelines.models import ModelConfig
from pipelines.models.importing import import_named
from pipelines.params import Metric, Params, suggestion
from storage.errors import ParamsError


class CustomMetrics:
    """Metrics that see every batch of an evaluation."""

    def __init__(self, entries: Sequence[str | Metric], config: ModelConfig) -> None:
        """Raises ParamsError for one that cannot be found or made."""
        self._classes: list[str] | None = config.spec.get("classes")
        self._metrics: dict[str, Any] = {}
        for entry in entries:
            metric = Metric(name=entry) if isinstance(entry, str) else entry
            key = metric_key(metric)
            if key in self._metrics:
                raise ParamsError(f"evaluate.metrics: two are called {key!r}: give one of them another key.")
            self._metrics[key] = _make(metric, config)

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def update(self, answers: Tensor, targets: Tensor) -> None:
        """Take a batch; shapes as above, but for the text metrics'."""
        for key, metric in self._metrics.items():
            text = type(metric).__module__.startswith("torchmetrics.text")
            try:
                metric.update(answers[None], targets[None]) if text else metric.update(answers, targets)
            except Exception as error:  # whatever it raises is about what it is given
                raise ParamsError(
                    f"evaluate.metrics: {key} cannot take answers {list(answers.shape)} and targets "
                    f"{list(targets.shape)}: {type(error).__name__}: {error}"
                ) from error

    def into(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """`metrics` with what these give."""
        for key, metric in self._metrics.items():
            if key in metrics:
                raise ParamsError(f"evaluate.metrics: {key!r} is measured anyway: take it out, or give it another key.")
            metrics = metrics | {key: self._number(key, metric.compute())}
        return metrics

    def _number(self, key: str, value: Any) -> float | dict[str, float]:
        values = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(values, int | float):
            return float(values)
        numbers = isinstance(values, list) and all(isinstance(one, int | float) for one in values)
        if numbers and self._classes and len(values) == len(self._classes):
            return dict(zip(self._classes, map(float, values), strict=True))
        raise ParamsError(
            f"evaluate.metrics: {key} gives {type(value).__name__} {list(getattr(value, 'shape', []))}, but a metric "
            "must give a number, or one a class. See its arguments (average, say)."
        )


def try_out(params: Params, config: ModelConfig) -> None:
    """Raises ParamsError for a metric of `evaluate.metrics` that could not be taken from a trained model: each is made,
    is given some samples that are made up, and must give a number."""
    if not params.evaluate.metrics:
        return
    task, random = config.get_task(), torch.Generator().manual_seed(0)
    targets = torch.arange(8) if task.classes is None else torch.arange(8) % task.classes
    answers = torch.randn(8, *([] if task.classes is None else [task.classes]), generator=random)
    if task.name == "classification":
        answers = answers.softmax(-1)
    custom = CustomMetrics(params.evaluate.metrics, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how few samples these are
        custom.update(answers, targets if task.classes else targets.float())
        custom.into(dict.fromkeys((*RESERVED, *own_figures(task.name, params, config.spec)), 0.0))


def _make(metric: Metric, config: ModelConfig) -> Any:
    cls = import_named(metric.name, "evaluate.metrics") if ":" in metric.name else _of_torchmetrics(metric.name)
    if not callable(getattr(cls, "update", None)) or not callable(getattr(cls, "compute", None)):
        raise ParamsError(f"evaluate.metrics: {metric.name!r}: {cls!r} has no update and compute.")
    facts: dict[str, Any] = {"num_classes": config.spec.get("vocab_size") or len(config.spec.get("classes") or [])}
    facts |= {"task": "multiclass"}
    named = [p for p in inspect.signature(cls).parameters if p != "kwargs"]
    for arg in metric.args:
        if arg not in named:
            raise ParamsError(f"evaluate.metrics: {metric.name} takes no argument {arg!r}{suggestion(arg, named)}")
    given = {name: value for name, value in facts.items() if name in named and value} | metric.args
    try:
        return cls(**given)
    except Exception as error:  # whatever a constructor raises is about its arguments
        raise ParamsError(
            f"evaluate.metrics: {metric.name} cannot be made with {given}: {type(error).__name__}: {error}"
        ) from error


def _of_torchmetrics(name: str) -> Any:
    import torchmetrics
    from torchmetrics import classification, regression, text

    known = {
        key: value
        for module in (torchmetrics, classification, regression, text)
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, torchmetrics.Metric)
    }
    if name not in known:
        raise no_such_metric(name, list(known))
    return known[name]
