"""The train stage: shards → data/model, metrics/train.json, plots/train.csv and plots/val.csv."""

import json
from typing import Any

from pipelines.progress import say
from pipelines.workspace import Workspace


def train(ws: Workspace) -> dict[str, Any]:
    """Train the model of `ws.params` on `train.ranks` ranks, going on from a checkpoint where one is.

    Returns what metrics/train.json holds. Raises ShardlineError; Interrupted (exit code 128 + signal) once the state
    is saved.
    """
    ws.zone("shards").manifest()  # a clear error before anything is started
    from pipelines.training.launchers import Job, launch

    launch(Job(ws, ws.params.train.ranks))
    metrics: dict[str, Any] = json.loads(ws.metrics("train").read_text())
    say(_summary(ws, metrics))
    return metrics


def _summary(ws: Workspace, metrics: dict[str, Any]) -> str:
    values = [f"{name} {metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy") if name in metrics]
    early = f" (stopped early; weights of step {metrics['step']})" if metrics["stopped_early"] else ""
    return (
        f"train: {ws.params.model.name}, {metrics['parameters']:,} parameters, {metrics['steps']} steps, "
        f"{metrics['epochs']:.2f} epochs{early}: {', '.join(values)}\n"
        f"  data version {metrics['manifest'][:12]}, model in {ws.model}"
    )
