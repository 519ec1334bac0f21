"""From a model and shards to an evaluation."""

import torch
from torch import nn

from pipelines.evaluation.data import HeldOut, check_fits
from pipelines.evaluation.language import measure_language
from pipelines.evaluation.metrics.custom import CustomMetrics
from pipelines.evaluation.result import Evaluation, rounded
from pipelines.evaluation.samples import measure_classification, measure_regression
from pipelines.models import ModelConfig
from pipelines.params import Params
from pipelines.training.process.device import pick_device, repeatable
from storage.lake import Zone
from storage.manifest import Manifest

#: The first of a task's metrics that there is tells how good a model is.
HEADLINES = {"language": ("bits_per_byte", "loss"), "classification": ("accuracy",), "regression": ("rmse",)}


def measure(model: nn.Module, config: ModelConfig, zone: Zone, manifest: Manifest, params: Params) -> Evaluation:
    """Evaluate in this process, in float32. Raises DataError for data that the model wasn't made for, or an empty
    split; DigestError."""
    check_fits(config, manifest)
    task, split, batch = config.get_task(), params.evaluate.split, params.evaluate.batch_size
    device = pick_device(params.train.device)
    held = HeldOut(zone=zone, manifest=manifest, split=split, batch=batch, device=device)
    custom = CustomMetrics(params.evaluate.metrics, config)
    with repeatable(params.train, device), torch.inference_mode():
        model = model.to(device).eval()
        if task.name == "language":
            samples = config.samples if params.evaluate.samples == "auto" else params.evaluate.samples
            result = measure_language(model, config, held, custom, samples)
        elif task.name == "classification":
            result = measure_classification(model, task, held, custom)
        else:
            result = measure_regression(model, task, held, custom)
    about = {"task": task.name, "split": split, "manifest": manifest.digest}
    return Evaluation(rounded(custom.into(about | result.metrics)), result.tables, result.figures)
