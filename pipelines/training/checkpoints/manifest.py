"""A checkpoint's manifest: a JSON file, written last. Its existence means that the checkpoint is complete."""

import json
from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.training.checkpoints.chunks import Chunk
from storage.digest import digest_json
from storage.errors import FormatError

FORMAT = 2
FILENAME = "manifest.json"


class Damaged(Exception):
    """A checkpoint that isn't as it was written; the text says what is wrong."""


@dataclass(frozen=True)
class Tensors:
    """One tensor: torch's name of its type (`float32`), its shape, and where its chunks are: [offsets, sizes, file]."""

    dtype: str
    shape: list[int]
    chunks: list[tuple[list[int], list[int], str]]

    @classmethod
    def of(cls, chunk: Chunk) -> "Tensors":
        """The tensor that `chunk` is of, without any chunk."""
        return cls(str(chunk.data.dtype).removeprefix("torch."), list(chunk.shape), [])

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint holds.

    step: steps done; ranks: how many wrote it; score: the val loss at that step, if it was measured; files: path →
    bytes and BLAKE3 digest; tensors and JSON values by name.
    """

    step: int
    ranks: int
    score: float | None
    files: dict[str, tuple[int, str]]
    tensors: dict[str, Tensors]
    values: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = vars(self) | {"tensors": {name: vars(about) for name, about in self.tensors.items()}}
        return json.dumps({"format": FORMAT, "digest": digest_json(body), **body}).encode()

    @classmethod
    def decode(cls, data: bytes, what: str) -> "CheckpointManifest":
        """`what` names the file in errors. Raises Damaged; FormatError for another format version."""
        try:
            body = json.loads(data)
            found, digest = body.pop("format"), body.pop("digest", None)
        except (ValueError, KeyError, AttributeError) as error:
            raise Damaged(f"{what} is no manifest: {error}") from error
        if found != FORMAT:
            raise unknown_format(what, found)
        if digest_json(body) != digest:
            raise Damaged(f"{what} has another digest than it says")
        tensors = {name: Tensors(**about) for name, about in body.pop("tensors").items()}
        return cls(tensors=tensors, **body)

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Every tensor's type and shape."""
        return {name: (about.torch_dtype, tuple(about.shape)) for name, about in self.tensors.items()}


def unknown_format(what: str, found: Any) -> FormatError:
    """The error for the checkpoint whose file `what` has format `found`; its training's folder is two levels up."""
    training = what.rsplit("/", 2)[0]
    return FormatError(
        f"{what}: checkpoint format {found!r}, but this Shardline reads format {FORMAT} only. Finish the training with "
        f"the Shardline that wrote it, or delete {training} to start it again."
    )
