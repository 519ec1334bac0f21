"""A trained model as it is used: raw inputs in (text, image files, rows of a table), answers with names out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.models.importing import NOBODY, Own
from pipelines.models.saved import ModelConfig, load_model
from pipelines.models.tokens import why_no_bytes
from storage.errors import DataError, FormatError
from storage.images import MAX_PIXELS, decode_image
from storage.number_text import number_of

Kind = Literal["text", "image", "table", "array"]
BATCH = 256  # rows that the model sees at once


@dataclass(frozen=True)
class Predictor:
    """A model and what its data looked like. `module` is in evaluation mode, on any device."""

    module: nn.Module
    config: ModelConfig

    @classmethod
    def load(cls, folder: Path, device: str | None = None, *, own: Own = NOBODY) -> "Predictor":
        """From model.safetensors and config.json in `folder`, on `device` (None: an accelerator where there is one); of
        Shardline's models, or of the user's `own` code. Raises as `load_model`."""
        module, config = load_model(folder, own)
        return cls(module.to(torch.device(device) if device else preferred_device()), config)

    @cached_property
    def kind(self) -> Kind:
        """What its inputs are."""
        return kind_of(self.config.spec)

    @cached_property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.module.parameters())

    # -- samples -------------------------------------------------------------------------------------------------

    def answer(self, inputs: NDArray[Any]) -> dict[str, list[Any]]:
        """For inputs [n, *shape] in the storage's dtype. Classification: label, probability and probabilities (of all
        classes, in their order); regression: value. Lists of length n."""
        parts = [self._logits(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
        logits = torch.cat(parts) if parts else torch.zeros(0, max(len(self.config.spec.get("classes") or []), 1))
        classes = self.config.spec.get("classes")
        if not classes:
            return {"value": logits.reshape(-1).tolist()}
        probabilities = logits.softmax(-1)
        best = probabilities.argmax(-1)
        return {
            "label": [classes[i] for i in best.tolist()],
            "probability": probabilities.amax(-1).tolist(),
            "probabilities": probabilities.tolist(),
        }

    @torch.inference_mode()
    def _logits(self, inputs: NDArray[Any]) -> torch.Tensor:
        logits: torch.Tensor = self.module(torch.from_numpy(inputs).to(self.device))
        self.config.get_task().check_shapes(logits, torch.empty(len(inputs)))
        return logits.double().cpu()

    def pixels(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """An encoded image as [height, width, channels] uint8, as the `shard` stage makes it; `name` is for errors."""
        out = np.empty(self.config.spec["inputs"]["x"]["shape"], np.uint8)
        try:
            decode_image(data, out, MAX_PIXELS)
        except DataError as error:
            raise DataError(f"{name}: cannot be decoded as an image ({error}). Is it a PNG, JPEG, … file?") from error
        return out

    def rows(self, columns: Mapping[str, Sequence[Any]], name: str) -> NDArray[np.float32]:
        """Feature columns by name as [n, features] float32; other columns are ignored. `name` is for errors."""
        features: list[str] = self.config.spec["features"]
        missing = [feature for feature in features if feature not in columns]
        if missing:
            raise DataError(
                f"{name}: lacks {len(missing)} of the model's {len(features)} columns: {', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}. It has: {', '.join(map(str, list(columns)[:10]))}."
            )
        return np.stack([_numbers(columns[feature], feature, name) for feature in features], axis=1)

    # -- text ----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt; of an empty one the separator, which begins a document. A model that has seen whole
        documents only gets it before every prompt. Raises DataError for an empty one where the data has no separator.
        """
        if why := why_no_bytes(self.config.spec):
            raise FormatError(
                f"The model's tokens cannot be told from text: {why}. Use it from Python, with its tokenizer."
            )
        separator = self.config.spec.get("separator")
        if separator is None and not text:
            raise DataError(
                "The prompt is empty, and the data that the model learnt from has no separator, which would begin a "
                "document: there is nothing to go on from. Give a prompt of one character at least."
            )
        begins = self.config.samples == "documents" or not text
        return [*([separator] if begins and separator is not None else []), *text.encode()]

    @torch.inference_mode()
    def write(
        self, prompt: Sequence[int], *, tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[int]:
        """Up to `tokens` tokens after `prompt`, one by one, until the model ends the document.

        Each is drawn from softmax(logits / temperature) over the `top_k` likeliest; temperature 0 takes the likeliest.
        The draws are made on the CPU, so on one machine they depend on nothing but the arguments.
        """
        random = torch.Generator().manual_seed(seed)
        context = list(prompt)
        for _ in range(tokens):
            sequence = torch.tensor([context[-(self.config.seq_len or len(context)) :]], device=self.device)
            logits = self.module(sequence)[0, -1].float().cpu()  # [vocab_size]
            token = _draw(logits, temperature, top_k, random)
            if token == self.config.spec.get("separator"):
                return
            context.append(token)
            yield token


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    best, tokens = logits.topk(min(top_k or len(logits), len(logits)))
    chances = ((best - best[0]) / temperature).softmax(-1)
    return int(tokens[torch.multinomial(chances, 1, generator=random)])


def _numbers(values: Sequence[Any], column: str, name: str) -> NDArray[np.float32]:
    """`values` as float32, by the grammar of curated tables. Raises DataError for one that isn't a finite number:
    training sets those aside."""
    cells = np.asarray(values)
    if cells.dtype.kind not in "biuf":
        cells = np.array([_number(value) for value in values], np.float64)
    with np.errstate(over="ignore"):
        numbers = cells.astype(np.float32)
    if (bad := np.flatnonzero(~np.isfinite(numbers))).size:
        row = int(bad[0])
        raise DataError(f"{name}: row {row + 1}, column {column!r}: {values[row]!r} is not a finite number.")
    return numbers


def _number(value: Any) -> float:
    try:
        found = number_of(value)
    except (ValueError, TypeError):
        found = None
    return math.nan if found is None else found


def kind_of(spec: Mapping[str, Any]) -> Kind:
    """What the inputs of data with this spec are; arrays are what is neither text, nor a table, nor an image."""
    if "vocab_size" in spec:
        return "text"
    if spec.get("features"):
        return "table"
    return "image" if spec.get("image_mode") else "array"


def preferred_device() -> torch.device:
    """The accelerator, where there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
