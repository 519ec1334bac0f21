"""Chunks of tensors in safetensors files (https://github.com/huggingface/safetensors#format): written in pieces, and
read only where the header says what the checkpoint's manifest says."""

import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Buffer

from pipelines.training.checkpoints.chunks import raw

SUFFIX = ".safetensors"
#: The format's names of types.
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
#: torch's own, as manifests have them (`float32`).
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in NAMES}
_LENGTH = 8  # bytes that say how long the header is

Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""What a file holds: a tensor's name in it → type and shape."""


def chunk_key(name: str, offsets: Iterable[int] | None) -> str:
    """A chunk's name in its file."""
    return f"{name}@{','.join(str(offset) for offset in offsets or ())}"


def parts(tensors: list[tuple[str, Tensor]]) -> Iterator[Buffer]:
    """A file in pieces: 8 bytes with the header's length, the JSON header, the tensors' bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(_LENGTH, "little") + text
    for _, tensor in tensors:
        yield raw(tensor.cpu().contiguous()).reshape(-1).data


def split(data: memoryview, entries: Entries) -> dict[str, memoryview]:
    """The bytes of each tensor in a file, which must hold just `entries`. Raises ValueError that says what differs."""
    header, body = _header(data)
    if header.keys() != entries.keys():
        name = min(header.keys() ^ entries.keys())
        raise ValueError(f"{name!r} is {'not ' if name in entries else ''}in the file, unlike in the manifest")
    found: dict[str, memoryview] = {}
    places: list[tuple[int, int]] = []
    for name, (dtype, shape) in entries.items():
        about = header[name]
        offsets = about.get("data_offsets") if isinstance(about, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(at) is not int for at in offsets):
            raise ValueError(f"{name!r} has no place in the file")
        begin, end = offsets
        size = prod(shape) * dtype.itemsize
        wanted = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, begin + size]}
        if about != wanted:
            raise ValueError(f"{name!r} is {about} in the file, and {wanted} by the manifest")
        places.append((begin, end))
        found[name] = body[begin:end] if begin >= 0 else body[:0]
    ends = [0, *(end for _, end in sorted(places))]
    if [begin for begin, _ in sorted(places)] != ends[:-1] or ends[-1] != len(body):
        raise ValueError("its tensors don't lie end to end in the file")
    return found


def _header(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > len(data) - _LENGTH:
        raise ValueError(f"its header of {length} bytes doesn't fit into {len(data)} bytes")
    try:
        header = json.loads(bytes(data[_LENGTH : _LENGTH + length]))
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    return header, data[_LENGTH + length :]
