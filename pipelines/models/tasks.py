"""What a model is asked to do with a dataset: what it is given, what it must answer, and what an answer costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import exp, sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.models.document_mask import DocumentMask
from storage.errors import DataError, ParamsError

TOKENS = "tokens"  # the array of a token batch
LENGTHS = "lengths"  # the array with the tokens of each sample, where some are padding
INPUTS = "x"  # the array of inputs of a batch of samples
IGNORED = -100  # a target that counts nothing (cross_entropy's default)
#: (answers, targets) → the sum over the targets; see `losses`.
Criterion = Callable[..., Tensor]


@dataclass(frozen=True)
class Task:
    """language: the next token; classification: a class; regression: a number.

    `target` names the array with the answers (samples); `scale` is the unit of a regression's errors; `criterion` takes
    the place of cross-entropy or squared error; `documents`: how a sequence's are told apart. `counts_vary`: how
    many targets count differs from sample to sample, and the others are IGNORED. `classes`: how many classes or tokens
    there are, None for a regression.
    """

    name: Literal["language", "classification", "regression"]
    target: str = TOKENS
    scale: float = 1.0
    criterion: Criterion | None = None
    counts_vary: bool = False
    document_mask: DocumentMask | None = None
    classes: int | None = None

    def for_model(self, model: nn.Module) -> "Task":
        """The task as `model` takes it. Raises ParamsError when it can't."""
        return replace(self, document_mask=self.document_mask.given_to(model)) if self.document_mask else self

    def targets_per_sample(self, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
        """Answers that a sample asks for: seq_len of a sequence of seq_len + 1 tokens, else 1. With `counts_vary`, some
        of them are IGNORED."""
        return arrays[TOKENS].shape[1] - 1 if self.name == "language" else 1

    def counted(self, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
        """Targets of these samples that count."""
        if self.document_mask is not None:
            return int(self.document_mask.counts(arrays).sum())
        if LENGTHS in arrays:
            return int(np.maximum(arrays[LENGTHS] - 1, 0).sum())
        return len(arrays[self.target]) * self.targets_per_sample(arrays)

    def beside(self, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
        """What the model is given beside the inputs, by name, a row a sample."""
        return self.document_mask.beside(arrays, device) if self.document_mask else {}

    def pair(self, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets on `device`; narrow types travel, and widen there.

        language: tokens [n, T+1] → int64 [n, T] twice, shifted by one, a target that doesn't count being IGNORED;
        otherwise inputs as stored [n, *shape], and targets int64 [n] or float32 [n]. Raises DataError for targets that
        are no classes or tokens.
        """
        self.check_values(arrays)
        if self.name == "language":
            tokens = torch.from_numpy(arrays[TOKENS]).to(device, non_blocking=True).long()
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            if self.document_mask is not None:
                counts = torch.from_numpy(self.document_mask.counts(arrays)).to(device, non_blocking=True)
                targets = targets.where(counts, IGNORED)
            if LENGTHS in arrays:
                lengths = torch.from_numpy(arrays[LENGTHS]).to(device, non_blocking=True)
                places = torch.arange(1, tokens.shape[1], device=device)
                targets = targets.masked_fill(places >= lengths[:, None], IGNORED)
            return inputs, targets
        inputs = torch.from_numpy(arrays[INPUTS]).to(device, non_blocking=True)
        targets = torch.from_numpy(arrays[self.target]).to(device, non_blocking=True)
        return inputs, targets.float() if self.name == "regression" else targets.long()

    def loss(self, answers: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum over the targets that count: the criterion, the cross-entropy in nats, the squared error in `scale`².
        Raises ParamsError as `check_shapes`."""
        self.check_shapes(answers, targets)
        if self.name == "regression":
            answers, targets = answers.float() / self.scale, targets / self.scale
            return (self.criterion or partial(F.mse_loss, reduction="sum"))(answers, targets)
        logits, targets = answers.float().flatten(0, -2), targets.flatten()
        if self.criterion is not None:
            if self.counts_vary:
                counts = targets != IGNORED
                logits, targets = logits[counts], targets[counts]
            return self.criterion(logits, targets)
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)

    def hits(self, answers: Tensor, targets: Tensor) -> Tensor:
        """How many classes are right, as a tensor; 0 for the other tasks."""
        if self.name != "classification":
            return torch.zeros((), device=answers.device)
        self.check_shapes(answers, targets)
        return (answers.argmax(-1) == targets).sum()

    def check_shapes(self, answers: Tensor, targets: Tensor) -> None:
        """Raises ParamsError for answers of another shape than the targets ask for, which torch would broadcast in
        part. Shapes alone are looked at, so no device is waited for."""
        wanted = targets.shape if self.classes is None else (*targets.shape, self.classes)
        if not isinstance(answers, Tensor):
            raise ParamsError(f"model.name: the model answers with a {type(answers).__name__}, but must with a tensor.")
        if answers.shape != wanted:
            each = "a number" if self.classes is None else f"{self.classes} logits"
            raise ParamsError(
                f"model.name: the model answers {list(answers.shape)} to targets {list(targets.shape)}, but must give "
                f"{list(wanted)}, {each} a target: see the contract of a model in docs/models.md, and model.args."
            )

    def check_values(self, arrays: Mapping[str, npt.NDArray[Any]], what: str = "a batch") -> None:
        """Raises DataError for targets of these samples, of `what`, that are no classes or tokens. They are on the host
        still, so no device is waited for."""
        targets = arrays[self.target]
        if self.name != "language" and targets.ndim != 1:
            raise DataError(
                f"{what}: targets {self.target!r} of shape {list(targets.shape)}, but must be one a sample."
            )
        if self.classes is None or not targets.size:
            return
        low, high = int(targets.min()), int(targets.max())
        if low >= 0 and high < self.classes:
            return
        bad = low if low < 0 else high
        row = int(np.argwhere(targets == bad)[0, 0])
        kind = "tokens" if self.name == "language" else "classes"
        where = f", sample {arrays.ids()[row]}" if hasattr(arrays, "ids") else ""
        hint = f" ({IGNORED} marks nothing here: leave samples without a label out)" if low < 0 else ""
        raise DataError(
            f"{what}{where}: {self.target} holds {bad}, but there are {self.classes} {kind}, numbered from 0{hint}. "
            "The shards' spec and their columns differ: make the shards again."
        )

    def summary(self, loss: float, hits: float) -> dict[str, float]:
        """Metrics of a mean loss and a share of hits."""
        if self.name == "classification":
            return {"loss": loss, "accuracy": hits}
        if self.criterion is not None:  # nothing is known of what its mean means
            return {"loss": loss}
        if self.name == "regression":
            return {"loss": loss, "rmse": sqrt(loss) * self.scale}
        return {"loss": loss, "perplexity": exp(min(loss, 700.0))}


def task_of(spec: dict[str, Any], document_mask: bool = False, *, counts_vary: bool = False) -> Task:
    """The task that the shards manifest's spec sets; with `documents`, those that share a sequence are kept apart.
    Raises DataError when it sets none, ParamsError for documents of samples."""
    if "vocab_size" in spec:
        packed = spec.get("pack_len") is not None
        told = DocumentMask(document_mask, spec.get("separator"), packed) if document_mask or packed else None
        vocabulary = int(spec["vocab_size"])
        return Task("language", counts_vary=counts_vary or told is not None, document_mask=told, classes=vocabulary)
    if document_mask:
        raise ParamsError("stream.document_mask=true, but these shards hold samples, not tokens: set it to false.")
    target = spec.get("target")
    if not target:
        raise DataError("The shards have no target to learn: set `curate.label` to the column to predict.")
    _check_inputs(spec)
    if target.get("shape"):
        raise DataError(
            f"The target {target['name']!r} has the shape {target['shape']} a sample, but a model learns one class or "
            "number: make shards with one target column of shape []."
        )
    if classes := spec.get("classes"):
        if not np.issubdtype(np.dtype(target["dtype"]), np.integer):
            raise DataError(
                f"The target {target['name']!r} has classes but is {target['dtype']}, not whole numbers: store the "
                "number of each sample's class, or leave the classes out for a regression."
            )
        return Task("classification", target["name"], classes=len(classes))
    if not np.issubdtype(np.dtype(target["dtype"]), np.floating):
        raise DataError(
            f"The target {target['name']!r} is {target['dtype']} but has no classes: "
            "set `curate.target` to class, or to value for a regression."
        )
    return Task("regression", target["name"], float(target.get("std") or 1.0))


def _check_inputs(spec: dict[str, Any]) -> None:
    """Raises DataError for inputs that a model would not be given, or that make no batch."""
    inputs = spec.get("inputs") or {}
    if more := sorted(set(inputs) - {INPUTS}):
        raise DataError(
            f"The shards have the inputs {', '.join(inputs)}, but a model is given {INPUTS!r} alone, so "
            f"{', '.join(more)} would be left out: make shards with one input column {INPUTS!r}."
        )
    own = inputs.get(INPUTS, {})
    if own.get("codec", "raw") != "raw" and not own.get("shape"):
        raise DataError(
            f"The input {INPUTS!r} has values of different shapes (codec {own['codec']!r}), which make no batch: bring "
            "them to one shape when the shards are made; images by shard.image_size."
        )
