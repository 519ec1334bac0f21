"""What a metric of `evaluate.metrics` is called in metrics/evaluate.json."""

import re

from pipelines.params import Metric


def metric_key(entry: str | Metric) -> str:
    """Its key where it has one, else the name of its class as snake case."""
    metric = Metric(name=entry) if isinstance(entry, str) else entry
    return metric.key or snake(metric.name.rpartition(":")[2])


def snake(name: str) -> str:
    """F1Score → f1_score, MulticlassAUROC → multiclass_auroc."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
