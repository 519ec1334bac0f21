"""Figures of a classifier or a regression on held-out samples."""

from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.evaluation.baselines import Counts, majority
from pipelines.evaluation.chosen import Chosen
from pipelines.evaluation.data import Array, open_split, sample_batches
from pipelines.evaluation.plots import matrix, scatter
from pipelines.evaluation.result import Evaluation
from pipelines.models import Task
from pipelines.progress import track
from storage.lake import Zone
from storage.manifest import Manifest

SCATTERED = 2000  # points of the regression's plot, at most


def measure_classification(
    model: nn.Module, task: Task, zone: Zone, manifest: Manifest, split: str, batch: int, device: torch.device,
    chosen: Chosen,
) -> Evaluation:  # fmt: skip
    """Accuracy, cross-entropy in nats, F1 by class and their mean, confusion matrix; beside the commonest class."""
    classes: list[str] = manifest.header["spec"]["classes"]
    confusion = np.zeros((len(classes), len(classes)), np.int64)  # rows: truth, columns: answer
    nats = 0.0
    for inputs, labels in track(sample_batches(zone, manifest, split, task.target, batch), "evaluate", unit="batches"):
        answers = model(torch.from_numpy(inputs).to(device)).float().cpu()
        nats -= float(answers.log_softmax(-1).double()[torch.arange(len(labels)), torch.from_numpy(labels)].sum())
        chosen.update(answers.softmax(-1), torch.from_numpy(labels).long())
        np.add.at(confusion, (labels, answers.argmax(-1).numpy()), 1)
    total = int(confusion.sum())
    rows = by_class(confusion, classes)
    seen = [row["f1"] for row, name in zip(rows, range(len(classes)), strict=True) if _occurs(confusion, name)]
    metrics = {
        "accuracy": float(np.trace(confusion)) / total,
        "loss": nats / total,
        "macro_f1": sum(seen) / len(seen),
        "f1": {row["class"]: row["f1"] for row in rows},
        "samples": total,
        "baseline": {"majority": majority(_label_counts(zone, manifest, task, len(classes)), confusion.sum(1))},
    }
    cells = [
        {"actual": classes[a], "predicted": classes[p], "samples": int(confusion[a, p])}
        for a in range(len(classes))
        for p in range(len(classes))
    ]
    tables = {"confusion": cells, "classes": rows}
    return Evaluation(metrics, tables, {"confusion": partial(matrix, confusion, classes)})


def by_class(confusion: Counts, classes: list[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class of a confusion matrix (rows: truth); 0 where they are undefined."""
    hits, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return [
        {
            "class": name,
            "precision": float(hits[i] / max(1, predicted[i])),
            "recall": float(hits[i] / max(1, actual[i])),
            "f1": float(2 * hits[i] / max(1, actual[i] + predicted[i])),
            "samples": int(actual[i]),
        }
        for i, name in enumerate(classes)
    ]


def _occurs(confusion: Counts, index: int) -> bool:
    return bool(confusion[index].any() or confusion[:, index].any())


def _label_counts(zone: Zone, manifest: Manifest, task: Task, classes: int) -> Counts:
    counts = np.zeros(classes, np.int64)
    for shard in open_split(zone, manifest, "train"):
        counts += np.bincount(shard.column(task.target), minlength=classes)
    return counts


def measure_regression(
    model: nn.Module, task: Task, zone: Zone, manifest: Manifest, split: str, batch: int, device: torch.device,
    chosen: Chosen,
) -> Evaluation:  # fmt: skip
    """Root mean square error, mean absolute error and R² in the target's unit, beside the train split's mean."""
    answers: list[Array] = []
    truths: list[Array] = []
    for inputs, targets in track(sample_batches(zone, manifest, split, task.target, batch), "evaluate", unit="batches"):
        answer = model(torch.from_numpy(inputs).to(device)).float().cpu()
        chosen.update(answer, torch.from_numpy(targets).float())
        answers.append(answer.double().numpy())
        truths.append(targets.astype(np.float64))
    guess, truth = np.concatenate(answers), np.concatenate(truths)
    known = [shard.column(task.target).astype(np.float64) for shard in open_split(zone, manifest, "train")]
    mean = float(np.concatenate(known).mean())
    metrics = errors(guess, truth) | {
        "samples": len(truth),
        "baseline": {"mean": errors(np.full_like(truth, mean), truth)},
    }
    points = [
        {"actual": float(t), "predicted": float(a)} for t, a in zip(truth[:SCATTERED], guess[:SCATTERED], strict=True)
    ]
    return Evaluation(metrics, {"predictions": points}, {"predictions": partial(scatter, points)})


def errors(answer: Array, truth: Array) -> dict[str, float]:
    """rmse, mae, and r2 = 1 - squared error / squared deviation (0 where the truth doesn't vary)."""
    squared = float(np.square(answer - truth).sum())
    spread = float(np.square(truth - truth.mean()).sum())
    return {
        "rmse": sqrt(squared / len(truth)),
        "mae": float(np.abs(answer - truth).mean()),
        "r2": 1 - squared / spread if spread else 0.0,
    }
