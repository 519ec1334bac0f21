"""From a model to the registry: evaluate, package, promote."""

from typing import Any, Literal

from pydantic import Field

from pipelines.params.schema.names import ImportPath
from pipelines.params.schema.section import NAME, Section


class Metric(Section):
    """A metric besides those of the task."""

    name: str
    """A class of torchmetrics, or package.module:Class of one with update(answers, targets) and compute()."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor, which gets task and num_classes by itself."""
    key: str | None = Field(None, pattern=NAME)
    """Its name in metrics/evaluate.json. None: that of the class, as in f1_score."""


class Evaluate(Section):
    """model → metrics."""

    split: Literal["val", "test"] = "test"
    """The split that is evaluated."""
    batch_size: int = Field(64, ge=1)
    """Samples at a time."""
    samples: Literal["auto", "windows", "documents"] = "auto"
    """Of text: the token stream in windows, or documents cut to stream.seq_len. auto: as the model has learnt."""
    metrics: list[str | Metric] = []
    """More metrics: names of torchmetrics, import paths, or {name, args, key}."""


class Package(Section):
    """model → MLflow model folder."""

    description: str = ""
    """A paragraph for the model card."""
    license: str = "unknown"
    """Of the weights, for the model card."""


class Gate(Section):
    """One condition of promotion: `metric` must be better than the champion's, or past a fixed bound."""

    metric: str
    """A key of metrics/evaluate.json, with dots: accuracy, bits_per_byte."""
    mode: Literal["min", "max"] = "max"
    """Whether smaller or larger is better."""
    min_gain: float = Field(0.0, ge=0)
    """By how much it must beat the champion on the same data version."""
    bound: float | None = None
    """It must also be at least as good as this."""
    baseline: str | None = None
    """It must also be better than this other metric: baseline.bigram.bits_per_byte."""


class Promote(Section):
    """package → registry."""

    model: str | None = Field(None, pattern=NAME)
    """Name in the registry; None: the recipe's."""
    gate: Gate
    """What the champion alias asks for."""
    trusted: list[ImportPath] = []
    """Import paths of earlier models of this recipe, which a version in the registry may name beside model.name."""
