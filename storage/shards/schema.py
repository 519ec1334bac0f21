"""The shard format: an Arrow IPC file with one uncompressed record batch whose values are 64-byte aligned.

The schema's metadata holds JSON under the key `shardline`:

    {"format": 1, "kind": "samples", "columns": {"x": {"codec": "raw", "dtype": "uint8", "shape": [8, 8, 1]}}}

- kind `samples`: a column of fixed width for each array of a sample: a primitive where the shape is [], else a
  FixedSizeList of its elements in C order. So a mapped column *is* the array [rows, *shape].
- kind `tokens`: the column `tokens`, a large_list with one row a document: its values are one flat token stream,
  its 64-bit offsets the documents' bounds.
- both: the column `id` (large_string), which names each row and is no part of batches.

Nothing is ever unpickled. A reader refuses a format or a codec that it doesn't know.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.digest import canonical_json
from storage.errors import FormatError

FORMAT = 1
SUFFIX = ".arrow"
ALIGNMENT = 64  # bytes
METADATA_KEY = b"shardline"
IDS = "id"
TOKENS = "tokens"
CODECS = ("raw",)
KINDS = ("samples", "tokens")

Kind = Literal["samples", "tokens"]


@dataclass(frozen=True)
class Column:
    """How one column is stored: `dtype` and `shape` of a row (of one element, for tokens)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    codec: str = "raw"

    @property
    def elements(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.elements * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        return {"codec": self.codec, "dtype": self.dtype.name, "shape": list(self.shape)}


def storable(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype`, if a column may have it: little-endian integers and floats up to 8 bytes. Raises TypeError."""
    found = np.dtype(dtype)
    if found.kind not in "iuf" or found.itemsize > 8 or found.newbyteorder("<") != found:
        raise TypeError(f"a shard cannot hold {found}: only little-endian integers and floats of 1 to 8 bytes")
    return found


def item(dtype: pa.DataType) -> pa.Field:
    """The element of a list column: never null."""
    return pa.field("item", dtype, nullable=False)


def encode_metadata(kind: Kind, columns: dict[str, Column], padding: int = 0) -> dict[bytes, bytes]:
    """The schema's metadata; `padding` spaces after the JSON move what follows it in the file."""
    header = {
        "format": FORMAT,
        "kind": kind,
        "columns": {name: col.to_json() for name, col in columns.items()},
    }
    return {METADATA_KEY: canonical_json(header) + b" " * padding}


def decode_metadata(schema: pa.Schema, what: str) -> tuple[Kind, dict[str, Column]]:
    """Kind and columns of a shard's schema; `what` names the file in errors. Raises FormatError."""
    try:
        header = json.loads((schema.metadata or {})[METADATA_KEY])
        version, _ = header["format"], schema.field(IDS)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{what}: an Arrow file, but no Shardline shard (its metadata says nothing of one). "
            "Check what was put there, or make the shards again with `dvc repro --force shard`."
        ) from error
    if version != FORMAT:
        raise FormatError(_unknown(what, "shard format", version, [FORMAT]))
    try:
        kind, columns = header["kind"], header["columns"]
        if kind not in KINDS:
            raise FormatError(_unknown(what, "kind of shard", kind, KINDS))
        for name, column in columns.items():
            if column["codec"] not in CODECS:
                raise FormatError(_unknown(what, f"codec of column {name!r}", column["codec"], CODECS))
        return kind, {
            name: Column(storable(column["dtype"]), tuple(map(int, column["shape"])), column["codec"])
            for name, column in columns.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{what}: the shard's metadata is malformed ({error!r}).") from error


def _unknown(what: str, of: str, found: object, known: Any) -> str:
    return (
        f"{what}: {of} {found!r}, but this Shardline reads {', '.join(map(repr, known))} only. "
        "Use the Shardline that wrote it, or make the shards again with `dvc repro --force shard`."
    )
