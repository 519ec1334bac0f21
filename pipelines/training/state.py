"""What a training knows of itself besides weights: how far it is, its best so far, its curves."""

import json
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from pydantic import TypeAdapter

Point = dict[str, float]


@dataclass
class TrainState:
    """JSON values only; saved in every checkpoint."""

    step: int = 0
    """Steps done."""
    run_id: str | None = None
    """The MLflow run, which goes on after an interruption."""
    loss_sum: float = 0.0
    """Of the targets since the last point of the train curve."""
    targets: int = 0
    """Their number."""
    samples: int = 0
    """Samples seen since the start."""
    validated: int = 0
    """The step of the last evaluation on the val split."""
    best_loss: float = inf
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite, which changed nothing."""
    skipped_in_row: int = 0
    """Of these, the last ones."""
    backoffs: int = 0
    """Returns to a checkpoint after such a step."""
    rate_scale: float = 1.0
    """Of the scheduled learning rate, since these."""
    train_curve: list[Point] = field(default_factory=list)
    val_curve: list[Point] = field(default_factory=list)

    def add_step(self, loss_sum: float, targets: int, samples: int) -> None:
        self.step += 1
        self.loss_sum += loss_sum
        self.targets += targets
        self.samples += samples
        self.skipped_in_row = 0

    def skip_step(self, samples: int) -> None:
        self.step += 1
        self.samples += samples
        self.skipped += 1
        self.skipped_in_row += 1

    def close_point(self, rate: float, norm: float) -> Point:
        """End the train curve's present interval with its mean loss."""
        point = {
            "step": self.step,
            "train_loss": self.loss_sum / self.targets,
            "lr": rate,
            "gradient_norm": norm,
        }
        self.loss_sum, self.targets = 0.0, 0
        self.train_curve.append(point)
        return point

    @property
    def train_loss(self) -> float:
        """The last point of the train curve; before there is one, the mean so far."""
        return self.train_curve[-1]["train_loss"] if self.train_curve else self.loss_sum / self.targets

    def add_validation(self, summary: dict[str, float]) -> bool:
        """Take an evaluation into account; True when it is the best so far."""
        self.validated = self.step
        self.val_curve.append({"step": self.step} | {f"val_{name}": value for name, value in summary.items()})
        better = summary["loss"] < self.best_loss
        if better:
            self.best_loss, self.best_step, self.stale = summary["loss"], self.step, 0
        else:
            self.stale += 1
        return better

    def to_json(self) -> dict[str, Any]:
        """Of this moment. Points never change, so the curves are copied as lists: training waits for this."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values |= {"train_curve": self.train_curve[:], "val_curve": self.val_curve[:]}
        return values | {"best_loss": None if self.best_loss == inf else self.best_loss}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Raises ValueError, KeyError or TypeError for what `to_json` doesn't give."""
        known = values | {"best_loss": 0.0 if values["best_loss"] is None else values["best_loss"]}
        TypeAdapter(cls).validate_json(json.dumps(known), strict=True)
        return cls(**values | {"best_loss": inf if values["best_loss"] is None else values["best_loss"]})
