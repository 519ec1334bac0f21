"""The train stage: shards → data/model, metrics/train.json, plots/train.csv and plots/val.csv."""

import json
import os
from typing import Any

from pipelines.workspace import Workspace


def calm_threads() -> None:
    """Let threads that wait for one another sleep, for this process and its children; before torch is imported.

    OpenMP's spin by default, which takes the cores from the very threads that they wait for once another process
    computes too: two trainings on two cores then run several times slower than one after the other.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def train(ws: Workspace) -> dict[str, Any]:
    """Train the model of `ws.params` on `train.ranks` ranks, going on from a checkpoint where one is.

    Returns what metrics/train.json holds. Raises ShardlineError; Interrupted (exit code 128 + signal) once the state
    is saved.
    """
    ws.zone("shards").manifest()  # a clear error before anything is started
    calm_threads()
    from pipelines.training.launchers import Job, launch

    launch(Job(ws, ws.params.train.ranks))
    metrics: dict[str, Any] = json.loads(ws.metrics("train").read_text())
    return metrics
