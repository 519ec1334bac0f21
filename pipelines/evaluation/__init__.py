"""Evaluation: a model's figures on held-out data, beside its baselines. Importing this does not import torch."""

from typing import TYPE_CHECKING, Any

from pipelines.evaluation.stage import evaluate

if TYPE_CHECKING:
    from torch import nn

    from pipelines.models import ModelConfig
    from pipelines.params import Params
    from storage.lake import Zone
    from storage.manifest import Manifest

__all__ = ["evaluate", "evaluate_model"]


def evaluate_model(
    model: "nn.Module", config: "ModelConfig", zone: "Zone", manifest: "Manifest", params: "Params"
) -> dict[str, Any]:
    """The metrics of `model` on `params.evaluate.split` of the shards in `zone`, as metrics/evaluate.json holds them.

    The data may be another version than the model's own, of the same kind; DataError otherwise. The same arguments
    give the same figures to the last digit on the same machine.
    """
    from pipelines.evaluation.measure import measure

    return measure(model, config, zone, manifest, params).metrics
