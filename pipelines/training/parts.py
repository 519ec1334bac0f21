"""The parts that a rank's training is put together from, in its own loop or for a trainer of one's own."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipelines.models import ModelConfig, Task
from pipelines.streaming import Stream
from pipelines.training.checkpoints import Saver
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.place import Place
from pipelines.training.communication import GradientSync
from pipelines.training.parallelism import Runner
from pipelines.training.process.device import Precision
from storage.cache import Tiered
from storage.lake import Zone
from storage.manifest import Manifest


@dataclass(kw_only=True)
class Goal:
    """What is to be learnt, by which model, in how many steps."""

    task: Task
    config: ModelConfig
    steps: int


@dataclass(kw_only=True)
class Data:
    """What is learnt from: the shards behind their caches, and this rank's part of them in order."""

    zone: Zone
    tiers: Tiered
    manifest: Manifest
    stream: Stream
    validates: bool
    """Whether there is a val split."""


@dataclass(kw_only=True)
class Learner:
    """What learns: this rank's parameters, what runs them together with the other ranks, and what changes them."""

    model: nn.Module
    parameters: int
    """Of the whole model."""
    runner: Runner
    shared: list[Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    gradient_sync: GradientSync
    precision: Precision


@dataclass(kw_only=True)
class Checkpoints:
    """What is kept to go on from, and the best weights so far."""

    saver: Saver
    place: Place
    best: dict[str, Chunk] = field(default_factory=dict)
    saved: int = -1
    """The step of the last one."""
    rated: bool = False
    """Whether it has a val loss."""
