"""Training loops over the same model, optimiser and ready batches: ours, one by hand, Lightning's, accelerate's.

All of them live in this one process, each with a model of its own, so that they share threads, caches and clock. A
block is some steps of one of them. Each loop does what a user's would: the rate of the schedule, forward, loss,
backward, clipping, the step, and the loss looked at every ten steps.

The learning rate is so small that the weights stay where they are: no block has easier numbers than another.
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from itertools import cycle, islice
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contender import listen
from benchmarks.parts.step_data import workspace
from pipelines.streaming import Batch, Times
from pipelines.training.loop import fit
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.session import Session, open_session
from pipelines.training.worker import reporting

READY = 32  # batches at hand
STEPS = 10**9  # of the schedule
LOG_EVERY = 10
CLIP = 1.0

Block = Callable[[int], float]  # steps → seconds


class Ready:
    """The place of a stream in a session: the same few batches again and again, without any wait."""

    wait_seconds = 0.0
    mixed = None

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.meter = self

    def __iter__(self) -> Iterator[Batch]:
        return cycle(self.batches)

    def snapshot(self) -> Times:
        return Times()


# -- ours --------------------------------------------------------------------------------------------------------------


class Ours:
    """`fit`, as `shardline train` runs it, with its MLflow run; over ready batches or over the stream."""

    def __init__(self, stack: ExitStack, recipe: str, data: Path, tiny: bool) -> None:
        ws = workspace(recipe, data, tiny)
        self.session = stack.enter_context(open_session(ws, Ranks()))
        self.session.goal.steps, self.session.data.validates = 0, False
        self.report = stack.enter_context(reporting(ws, self.session))
        self.stream = self.session.data.stream
        self.batches = [copy(batch) for batch in islice(self.stream, READY)]
        self.ready = Ready(self.batches)
        self.strict = torch.get_deterministic_debug_mode()

    def block(self, steps: int, *, streamed: bool = False) -> float:
        session: Any = self.session
        session.data.stream = self.stream if streamed else self.ready
        session.goal.steps += steps
        torch.set_deterministic_debug_mode(self.strict)
        began = time.perf_counter()
        fit(session, self.report, StopRequest())
        seconds = time.perf_counter() - began
        torch.set_deterministic_debug_mode(0)  # the others have PyTorch's default
        return seconds


# -- the others --------------------------------------------------------------------------------------------------------


def schedule(step: int) -> float:
    """The cosine of the learning rate."""
    return (1 + cos(pi * step / STEPS)) / 2


class Plain:
    """What the others share: a model, its optimiser with a schedule, batches as a loader would hand them over."""

    def __init__(self, ours: Ours) -> None:
        s: Session = ours.session
        train = s.params.train
        self.language = s.goal.task.name == "language"
        self.smoothing = train.label_smoothing
        self.model: nn.Module = s.goal.config.build(s.params.seed).train()
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, 0.95), fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in ours.batches]
        self.label = s.goal.task.target
        self.curve: list[float] = []
        self.done = 0

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if self.language:
            tokens = batch["tokens"].long()
            return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        return F.cross_entropy(model(batch["x"]), batch[self.label], label_smoothing=self.smoothing)

    def look(self, loss: Tensor) -> None:
        """After a step: now and then, at its loss."""
        self.done += 1
        if self.done % LOG_EVERY == 0:
            self.curve.append(loss.item())


@dataclass(frozen=True)
class Loader:
    """Ready batches as something with a length, which Lightning asks for."""

    batches: list[dict[str, Tensor]]
    steps: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return islice(cycle(self.batches), self.steps)

    def __len__(self) -> int:
        return self.steps


def bare(ours: Ours) -> Block:
    """Plain PyTorch, by hand."""
    plain = Plain(ours)
    model, optimizer, scheduler = plain.model, plain.optimizer, plain.scheduler

    def block(steps: int) -> float:
        began = time.perf_counter()
        for batch in islice(cycle(plain.batches), steps):
            loss = plain.loss(model, batch)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            plain.look(loss)
        return time.perf_counter() - began

    return block


def with_accelerate(ours: Ours) -> Block:
    """accelerate 1.x as its quick tour says: prepare, backward, clip by the accelerator; no tracker."""
    from accelerate import Accelerator

    plain = Plain(ours)
    accelerator = Accelerator(cpu=True)
    model, optimizer, scheduler = accelerator.prepare(plain.model, plain.optimizer, plain.scheduler)

    def block(steps: int) -> float:
        began = time.perf_counter()
        for batch in islice(cycle(plain.batches), steps):
            loss = plain.loss(model, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            plain.look(loss)
        return time.perf_counter() - began

    return block


def with_lightning(ours: Ours) -> Block:
    """A LightningModule under a Trainer without logger, checkpoints, bar and summary: its leanest. The clock runs from
    its first batch to the end of its last one, so that what `Trainer.fit` does around the steps costs nothing."""
    import pytorch_lightning as lightning

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    plain = Plain(ours)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = plain.model
            self.seconds, self.began = 0.0, 0.0

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.began = self.began or time.perf_counter()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seconds = time.perf_counter() - self.began

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = plain.loss(self.model, batch)
            if batch_idx % LOG_EVERY == LOG_EVERY - 1:
                self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            schedule = {"scheduler": plain.scheduler, "interval": "step"}
            return {"optimizer": plain.optimizer, "lr_scheduler": schedule}

    def block(steps: int) -> float:
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, gradient_clip_val=CLIP, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, Loader(plain.batches, steps))
        return module.seconds

    return block


LOOPS: dict[str, Callable[[Ours], Block]] = {
    "bare": bare,
    "accelerate": with_accelerate,
    "lightning": with_lightning,
}


def make(job: dict[str, Any], stack: ExitStack) -> Callable[..., dict[str, Any]]:
    """What answers `turns`, the names of loops, with the figures of a block of `steps` steps for each of them: seconds,
    seconds of this thread on a core, and seconds that the stream let it wait."""
    ours = Ours(stack, job["contender"], Path(job["data"]), job["tiny"])
    blocks: dict[str, Block] = {"ours": ours.block, "stream": lambda steps: ours.block(steps, streamed=True)}
    blocks |= {who: LOOPS[who](ours) for who in job["against"]}

    def one(who: str, steps: int) -> dict[str, float]:
        waited, worked = ours.stream.wait_seconds, time.thread_time()
        seconds = blocks[who](steps)
        return {
            "seconds": seconds,
            "cpu": time.thread_time() - worked,
            "waited": ours.stream.wait_seconds - waited,
        }

    return lambda turns, steps: {"blocks": [one(who, steps) for who in turns]}


if __name__ == "__main__":
    with ExitStack() as opened:
        listen(lambda: make(json.loads(sys.argv[1]), opened))
