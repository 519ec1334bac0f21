"""A checkpoint's manifest: a JSON file, written last. Its existence means that the checkpoint is complete.

It is read strictly, whoever wrote it: every field has its type, files are objects of the checkpoint's own folder, and
the chunks of each tensor fill it exactly.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.state import optimizer_fault
from pipelines.training.checkpoints.tensor_files import DTYPES, SUFFIX, Entries, chunk_key
from storage.digest import DIGEST_LENGTH, digest_json
from storage.errors import FormatError
from storage.lake import OBJECTS

FORMAT = 2
FILENAME = "manifest.json"
_STRICT = ConfigDict(extra="forbid")

Whole = Annotated[StrictInt, Field(ge=0)]
Digest = Annotated[StrictStr, Field(pattern=rf"^[0-9a-f]{{{DIGEST_LENGTH}}}\z")]


class Damaged(Exception):
    """A checkpoint that isn't as it was written; the text says what is wrong."""


@dataclass(frozen=True)
class Tensors:
    """One tensor: torch's name of its type (`float32`), its shape, and where its chunks are: [offsets, sizes, file]."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    dtype: StrictStr
    shape: list[Whole]
    chunks: list[tuple[list[Whole], list[Whole], StrictStr]]

    @classmethod
    def of(cls, chunk: Chunk) -> "Tensors":
        """The tensor that `chunk` is of, without any chunk."""
        return cls(str(chunk.data.dtype).removeprefix("torch."), list(chunk.shape), [])

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint holds.

    step: steps done; ranks: how many wrote it; score: the val loss at that step, if it was measured; files: path →
    bytes and BLAKE3 digest; tensors and JSON values by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    step: Whole
    ranks: Whole
    score: StrictFloat | StrictInt | None
    files: dict[str, tuple[Whole, Digest]]
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
            if not isinstance(body, dict):
                raise ValueError("it is no JSON object")
            found, digest = body.pop("format"), body.pop("digest", None)
            if found != FORMAT:
                raise unknown_format(what, found)
            if digest_json(body) != digest:
                raise Damaged(f"{what} has another digest than it says")
            manifest = _READER.validate_python(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Damaged(f"{what} is no manifest: {place}: {first['msg']}") from error
        except (ValueError, KeyError, RecursionError) as error:
            raise Damaged(f"{what} is no manifest: {error}") from error
        if wrong := manifest.fault():
            raise Damaged(f"{what}: {wrong}")
        return manifest

    def fault(self) -> str | None:
        """What doesn't fit together: files, tensors and their chunks; None where all does."""
        for path, (_, digest) in self.files.items():
            if path != f"{OBJECTS}/{digest}{SUFFIX}":
                return f"the file {path!r} is not the object of its digest, {OBJECTS}/{digest}{SUFFIX}"
        for name, about in self.tensors.items():
            if about.dtype not in DTYPES:
                return f"tensor {name!r} has the unknown type {about.dtype!r}"
            if wrong := fault(about.shape, [(at, sizes) for at, sizes, _ in about.chunks]):
                return f"tensor {name!r} of shape {about.shape}: {wrong}"
        contents = self.contents()
        if contents.keys() != self.files.keys():
            return f"the file {min(contents.keys() ^ self.files.keys())!r} is named by files or by chunks only"
        for path, entries in contents.items():
            least = sum(prod(sizes) * dtype.itemsize for dtype, sizes in entries.values())
            if least > self.files[path][0]:
                return f"the file {path!r} of {self.files[path][0]} bytes is to hold {least} bytes of tensors"
        return optimizer_fault(self.values, self.tensors.keys())

    def contents(self) -> dict[str, Entries]:
        """File → the chunks in it, by their names there."""
        found: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        for name, about in self.tensors.items():
            for at, sizes, path in about.chunks:
                found.setdefault(path, {})[chunk_key(name, at)] = about.torch_dtype, tuple(sizes)
        return dict(found)

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Every tensor's type and shape."""
        return {name: (about.torch_dtype, tuple(about.shape)) for name, about in self.tensors.items()}


_READER = TypeAdapter(CheckpointManifest)


def unknown_format(what: str, found: Any) -> FormatError:
    """The error for the checkpoint whose file `what` has format `found`; its training's folder is two levels up."""
    training = what.rsplit("/", 2)[0]
    return FormatError(
        f"{what}: checkpoint format {found!r}, but this Shardline reads format {FORMAT} only. Finish the training with "
        f"the Shardline that wrote it, or delete {training} to start it again."
    )


Box = tuple[Sequence[int], Sequence[int]]
"""[offsets of the first corner, sizes], an entry for each axis."""

MOST_AXES = 8  # along which a tensor may be cut; a layout has fewer


def fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """What is wrong with `boxes` as the pieces of a tensor of `shape`; None where they fill it exactly.

    Each box adds its corners to a sum, with alternating signs. What the boxes cover and how often follows from that sum
    alone, so it must be the one of the whole tensor. Linear in the number of boxes.
    """
    if 0 in shape:
        return None if not boxes else "it has no elements, but chunks"
    for offsets, sizes in boxes:
        ends = len(offsets) == len(sizes) == len(shape) and zip(offsets, sizes, shape, strict=True)
        if not ends or not all(at >= 0 and size > 0 and at + size <= whole for at, size, whole in ends):
            return f"its chunk at {list(offsets)} of sizes {list(sizes)} is not inside it"
    axes = [axis for axis, whole in enumerate(shape) if any(sizes[axis] != whole for _, sizes in boxes)]
    if len(axes) > MOST_AXES:
        return f"it is cut along {len(axes)} axes, and may be along {MOST_AXES}"
    left: Counter[tuple[int, ...]] = Counter()
    _add(left, axes, [0] * len(shape), shape, -1)
    for offsets, sizes in boxes:
        _add(left, axes, offsets, sizes, 1)
    wrong = min((corner for corner, count in left.items() if count), default=None)
    if wrong is None:
        return None
    place = [0] * len(shape)
    for axis, at in zip(axes, wrong, strict=True):
        place[axis] = at
    return f"its chunks {'overlap' if left[wrong] > 0 else 'leave a gap'} at {place}"


def _add(
    corners: Counter[tuple[int, ...]], axes: list[int], at: Sequence[int], sizes: Sequence[int], sign: int
) -> None:
    """Add a box's corners, as far as `axes` tell them apart: + for the first one, - for its neighbours, and so on."""
    for ends in product((0, 1), repeat=len(axes)):
        corner = tuple(at[axis] + end * sizes[axis] for axis, end in zip(axes, ends, strict=True))
        corners[corner] += sign * (-1) ** sum(ends)
