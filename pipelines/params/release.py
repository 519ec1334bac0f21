"""From a model to the registry: evaluate, package, promote."""

from typing import Any, Literal

from pydantic import Field

from pipelines.params.schema.names import ImportPath
from pipelines.params.schema.section import NAME, Section


class Metric(Section):
    """A metric besides those of the task."""

    name: str
    """Class of torchmetrics, or import path package.module:Class of a class with update(answers, targets) and
    compute()."""
    args: dict[str, Any] = {}
    """Keyword arguments of the metric's constructor, beside task and num_classes, which it gets by itself."""
    key: str | None = Field(None, pattern=NAME)
    """Name of the metric in metrics/evaluate.json. None: its class' name in snake case, e.g. f1_score."""


class Evaluate(Section):
    """model → metrics."""

    split: Literal["val", "test"] = "test"
    """Split on which the model is evaluated."""
    batch_size: int = Field(64, ge=1)
    """Samples that are evaluated at a time, which changes no result."""
    samples: Literal["auto", "sequences", "documents"] = "auto"
    """What a sample of a token dataset is in the evaluation. sequences: a stretch of stream.seq_len tokens. documents:
    a whole document, truncated to stream.seq_len. auto: what the model was trained on."""
    metrics: list[str | Metric] = []
    """Metrics besides those of the task: names of torchmetrics classes, import paths, or {name, args, key}."""


class Package(Section):
    """model → MLflow model folder."""

    description: str = ""
    """A paragraph about the model, for its model card."""
    license: str = "unknown"
    """License of the weights, for the model card."""


class Gate(Section):
    """One condition of promotion: `metric` must be better than the champion's, or past a fixed bound."""

    metric: str
    """Metric that decides on promotion: a key of metrics/evaluate.json, with dots where it is nested: accuracy,
    bits_per_byte."""
    mode: Literal["min", "max"] = "max"
    """Whether the gate's metric is better when it is smaller (min) or larger (max)."""
    min_gain: float = Field(0.0, ge=0)
    """By how much a new model's metric must be better than the champion's, measured on the same data version."""
    bound: float | None = None
    """Value that the gate's metric must reach: at least (max) or at most (min). None: no such bound."""
    baseline: str | None = None
    """Another key of metrics/evaluate.json whose value the gate's metric must beat, e.g. baseline.bigram.bits_per_byte.
    None: no baseline."""


class Promote(Section):
    """package → registry."""

    model: str | None = Field(None, pattern=NAME)
    """Name of the model in the registry. None: the recipe's name."""
    gate: Gate
    """Conditions under which a new model becomes the champion."""
    trusted: list[ImportPath] = []
    """Import paths of earlier models of this recipe that versions in the registry still name. They may be imported, as
    model.name may."""
