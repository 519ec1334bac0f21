"""`shardline replay --step N`: the batch of a step once more, and what it does to the model.

The batch is exact, as the order is a function of (seed, step). The weights are those of the nearest checkpoint before
the step, else the initial ones; nothing is written, no optimiser step is taken.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from pipelines.console.formats import json_text
from pipelines.console.progress import say
from pipelines.params import Params
from pipelines.streaming import Batch
from pipelines.training.loop import forward_backward
from pipelines.training.parallelism.runner import cut
from pipelines.training.process.device import seed_step
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import Session, open_session
from pipelines.workspace import Workspace
from storage.errors import ParamsError


@dataclass(frozen=True)
class Origin:
    """Where values that are not finite first appear: a module by name and class, and how many of its outputs."""

    module: str
    kind: str
    bad: int
    of: int

    def __str__(self) -> str:
        return f"{self.module or 'the model'} ({self.kind}): {self.bad:,} of {self.of:,} outputs"


@dataclass(frozen=True)
class BatchPlace:
    """Which batch a step had."""

    step: int
    epoch: int
    batch: int


@dataclass(frozen=True)
class Replay:
    """What a step's batch does. `weights_of`: steps done by the weights used, 0 for the initial ones. `samples`: (id,
    mean loss of its targets), the worst first, which is what isn't finite."""

    place: BatchPlace
    weights_of: int
    loss: float
    gradient_norm: float
    samples: list[tuple[str, float]]
    forward: Origin | None
    gradients: list[str]

    @property
    def not_finite(self) -> list[str]:
        """Samples whose loss isn't."""
        return [name for name, loss in self.samples if not isfinite(loss)]

    def text(self, shown: int = 10) -> str:
        used = f"the checkpoint after step {self.weights_of}" if self.weights_of else "the initial weights"
        at = self.place
        lines = [
            f"step {at.step}: batch {at.batch} of epoch {at.epoch}, {len(self.samples)} samples, with {used}",
            f"loss {self.loss:.6g}, gradient norm {self.gradient_norm:.6g}",
            "samples, the worst first:",
            *(f"  {loss:<12.6g} {name}" for name, loss in self.samples[:shown]),
        ]
        if len(self.samples) > shown:
            lines.append(f"  and {len(self.samples) - shown} more (--all)")
        bad = self.not_finite
        lines.append(f"samples with a loss that is not finite: {', '.join(bad) if bad else 'none'}")
        if self.forward is not None:
            lines.append(f"in the forward pass, values that are not finite first appear in {self.forward}")
        if self.gradients:
            lines.append(f"gradients that are not finite: {', '.join(self.gradients[:shown])}")
        if self.forward is None and not self.gradients:
            lines.append("all values and gradients are finite")
        return "\n".join(lines)


def show_replay(ws: Workspace, step: int, *, everything: bool = False, as_json: bool = False) -> None:
    """Replay a step and print what came of it."""
    found = replay(ws, step)
    values = asdict(found)
    values = values.pop("place") | values | {"not_finite": found.not_finite}
    say(json_text(values) if as_json else found.text(len(found.samples) if everything else 10))


def replay(ws: Workspace, step: int) -> Replay:
    """Step `step` (counted from 1) again, in this process. Raises ParamsError for a step that the training hasn't."""
    one = Workspace(ws.root, ws.project, _on_one_rank(ws.params))
    with open_session(one, Ranks(), before=step) as s:
        if not 1 <= step <= s.goal.steps:
            raise ParamsError(f"--step {step}: this training has the steps 1 to {s.goal.steps}.")
        weights_of, s.state.step = s.state.step, step - 1
        epoch, index = s.data.stream.place(step - 1)
        batch = s.data.stream.batch(index, epoch)
        seed_step(s.params.seed, step - 1, 0)
        with _watched(s.learner.model) as origins:
            loss, targets = forward_backward(s, batch)
        s.learner.scaler.unscale_(s.learner.optimizer)
        named = {name: p.grad for name, p in s.learner.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(named.values()))
        bad = [name for name, gradient in named.items() if not bool(torch.isfinite(gradient).all())]
        samples = sorted(zip(batch.ids(), _losses(s, batch), strict=True), key=_badness, reverse=True)
        return Replay(
            BatchPlace(step, epoch, index), weights_of, float(loss) / targets, float(norm), samples,
            origins[0] if origins else None, bad,
        )  # fmt: skip


def _on_one_rank(params: Params) -> Params:
    """The same training on one rank, which takes the whole batch."""
    changes = {"ranks": 1}
    if parallel := getattr(params.train, "parallel", None):
        changes["parallel"] = type(parallel)()
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def _badness(sample: tuple[str, float]) -> tuple[bool, float]:
    """Larger for a worse sample."""
    finite = isfinite(sample[1])
    return not finite, sample[1] if finite else 0.0


def _losses(s: Session, batch: Batch) -> Iterator[float]:
    """The mean loss of each sample's targets, in the batch's order; the same randomness as in the step."""
    inputs, targets = s.goal.task.pair(batch.arrays, s.group.device)
    pieces = min(s.params.train.accumulate, len(inputs))
    beside = cut(s.goal.task.beside(batch.arrays, s.group.device), pieces)
    counted = (s.goal.task.counted({n: v[i : i + 1] for n, v in batch.arrays.items()}) for i in range(len(inputs)))
    seed_step(s.params.seed, s.state.step, 0)
    with torch.no_grad(), s.learner.precision.autocast():
        for x, y, more in zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), beside, strict=True):
            answers = s.learner.model(x, **more)
            for index in range(len(x)):
                one = slice(index, index + 1)
                loss = s.goal.task.loss(answers[one], y[one], s.params.train.label_smoothing)
                yield float(loss) / max(1, next(counted))


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Origin]]:
    """Collects the modules whose output is not finite although their inputs are, in the order of the forward pass."""
    found: list[Origin] = []

    def look(name: str, module: nn.Module, inputs: object, output: object) -> None:
        values = _tensors(output)
        bad = sum(int((~torch.isfinite(value)).sum()) for value in values)
        if bad and all(bool(torch.isfinite(value).all()) for value in _tensors(inputs)):
            found.append(Origin(name, type(module).__name__, bad, sum(value.numel() for value in values)))

    def hook(name: str) -> object:
        return lambda module, inputs, output: look(name, module, inputs, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> list[Tensor]:
    """The floating-point tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
