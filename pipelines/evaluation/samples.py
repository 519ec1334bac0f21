"""Figures of a classifier or a regression on held-out samples."""

from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.console.progress import track
from pipelines.evaluation.baselines import Counts, majority
from pipelines.evaluation.data import Array, HeldOut, open_split
from pipelines.evaluation.domains import Domain, domains_of, with_domains
from pipelines.evaluation.metrics.custom import CustomMetrics
from pipelines.evaluation.plots import matrix, scatter
from pipelines.evaluation.result import Evaluation
from pipelines.models import Task

SCATTERED = 2000  # points of the regression's plot, at most


def measure_classification(model: nn.Module, task: Task, held: HeldOut, custom: CustomMetrics) -> Evaluation:
    """Accuracy, cross-entropy in nats, F1 by class and their mean, confusion matrix; beside the commonest class."""
    classes: list[str] = held.manifest.header["spec"]["classes"]
    # rows: truth, columns: answer
    confusions = {d: np.zeros((len(classes), len(classes)), np.int64) for d in domains_of(held.manifest, held.split)}
    nats = dict.fromkeys(confusions, 0.0)
    batches = ((d, *pair) for d in nats for pair in held.samples(task.target, d))
    for domain, inputs, labels in track(batches, "evaluate", unit="batches"):
        answers = _answers(model, task, inputs, labels, held.device).float().cpu()
        right = answers.log_softmax(-1).double()[torch.arange(len(labels)), torch.from_numpy(labels)]
        nats[domain] -= float(right.sum())
        custom.update(answers.softmax(-1), torch.from_numpy(labels).long())
        np.add.at(confusions[domain], (labels, answers.argmax(-1).numpy()), 1)
    train = _label_counts(held, task, len(classes))
    confusion = np.sum(list(confusions.values()), axis=0)
    rows = by_class(confusion, classes)
    metrics = _figures(confusion, sum(nats.values()), rows, train)
    metrics["f1"] = {row["class"]: row["f1"] for row in rows}
    cells = [
        {"actual": classes[a], "predicted": classes[p], "samples": int(confusion[a, p])}
        for a in range(len(classes))
        for p in range(len(classes))
    ]
    tables = {"confusion": cells, "classes": rows}
    result = Evaluation(metrics, tables, {"confusion": partial(matrix, confusion, classes)})
    of_domains = {d: _figures(seen, nats[d], by_class(seen, classes), train) for d, seen in confusions.items()}
    return with_domains(result, of_domains, "accuracy", "accuracy by domain (more is better)")


def _answers(model: nn.Module, task: Task, inputs: Array, targets: Array, device: torch.device) -> Tensor:
    """What the model says, of the shape that the targets ask for. Raises DataError, ParamsError as `Task.check_…`."""
    task.check_values({task.target: targets})
    answers: Tensor = model(torch.from_numpy(inputs).to(device))
    task.check_shapes(answers, torch.from_numpy(targets))
    return answers


def _figures(confusion: Counts, nats: float, rows: list[dict[str, Any]], train: Counts) -> dict[str, Any]:
    """Of a confusion matrix and the nats spent; `rows` as `by_class` gives them, `train` how often each class occurs
    there."""
    total = int(confusion.sum())
    seen = [row["f1"] for row, name in zip(rows, range(len(rows)), strict=True) if _occurs(confusion, name)]
    return {
        "accuracy": float(np.trace(confusion)) / total,
        "loss": nats / total,
        "macro_f1": sum(seen) / len(seen),
        "samples": total,
        "baseline": {"majority": majority(train, confusion.sum(1))},
    }


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


def _label_counts(held: HeldOut, task: Task, classes: int) -> Counts:
    counts = np.zeros(classes, np.int64)
    for shard in open_split(held.zone, held.manifest, "train"):
        labels = shard.column(task.target)
        task.check_values({task.target: labels}, shard.what)
        counts += np.bincount(labels, minlength=classes)
    return counts


def measure_regression(model: nn.Module, task: Task, held: HeldOut, custom: CustomMetrics) -> Evaluation:
    """Root mean square error, mean absolute error and R² in the target's unit, beside the train split's mean."""
    found: dict[Domain, list[tuple[Array, Array]]] = {domain: [] for domain in domains_of(held.manifest, held.split)}
    batches = ((d, *pair) for d in found for pair in held.samples(task.target, d))
    for domain, inputs, targets in track(batches, "evaluate", unit="batches"):
        answer = _answers(model, task, inputs, targets, held.device).float().cpu()
        custom.update(answer, torch.from_numpy(targets).float())
        found[domain].append((answer.double().numpy(), targets.astype(np.float64)))
    known = [shard.column(task.target).astype(np.float64) for shard in open_split(held.zone, held.manifest, "train")]
    mean = float(np.concatenate(known).mean())

    def metrics_of(guess: Array, truth: Array) -> dict[str, Any]:
        return errors(guess, truth) | {
            "samples": len(truth),
            "baseline": {"mean": errors(np.full_like(truth, mean), truth)},
        }

    own = {d: tuple(map(np.concatenate, zip(*pairs, strict=True))) for d, pairs in found.items()}
    guess, truth = map(np.concatenate, zip(*own.values(), strict=True))
    points = [
        {"actual": float(t), "predicted": float(a)} for t, a in zip(truth[:SCATTERED], guess[:SCATTERED], strict=True)
    ]
    result = Evaluation(metrics_of(guess, truth), {"predictions": points}, {"predictions": partial(scatter, points)})
    of_domains = {d: metrics_of(*pair) for d, pair in own.items()}
    return with_domains(result, of_domains, "rmse", "root mean square error by domain (less is better)")


def errors(answer: Array, truth: Array) -> dict[str, float]:
    """rmse, mae, and r2 = 1 - squared error / squared deviation (0 where the truth doesn't vary)."""
    squared = float(np.square(answer - truth).sum())
    spread = float(np.square(truth - truth.mean()).sum())
    return {
        "rmse": sqrt(squared / len(truth)),
        "mae": float(np.abs(answer - truth).mean()),
        "r2": 1 - squared / spread if spread else 0.0,
    }
