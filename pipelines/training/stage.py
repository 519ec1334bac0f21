"""The train stage: shards → data/model, metrics/train.json, plots/train.csv and plots/val.csv."""

import json
from typing import Any

from pipelines.workspace import Workspace


def train(ws: Workspace) -> dict[str, Any]:
    """Train the model of `ws.params` on `train.ranks` ranks, going on from a checkpoint where one is.

    Returns what metrics/train.json holds; {} on a machine where it isn't, since rank 0 was on another. Raises
    ShardlineError; Interrupted (exit code 128 + signal) once the state is saved.
    """
    ws.zone("shards").manifest()  # a clear error before anything is started
    from pipelines.training.launchers import Job, launch

    launch(Job(ws, ws.params.train.ranks))
    file = ws.metrics("train")
    metrics: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return metrics
