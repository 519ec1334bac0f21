"""The shard format: an Arrow IPC file with one uncompressed record batch whose values are 64-byte aligned.

The schema's metadata holds JSON under the key `shardline`:

    {"format": 1, "kind": "samples", "columns": {"x": {"codec": "raw", "dtype": "uint8", "shape": [8, 8, 1]}}}

- kind `samples`: a column for each array of a sample, by codec:
  - `raw`, fixed width: a primitive where the shape is [], else a FixedSizeList of its elements in C order. So a mapped
    column *is* the array [rows, *shape].
  - `bytes`, variable width: large_binary, so 64-bit offsets and then all rows' bytes end to end. The dtype is uint8,
    the shape null.
  - `image`: the same, each row an encoded JPEG or PNG. dtype and shape are of the decoded sample, uint8 and
    [height, width, channels]; the shape is null where sizes vary.
- kind `tokens`: the column `tokens`, a large_list with one row a document: its values are one flat token stream,
  its 64-bit offsets the documents' bounds.
- both: the column `id` (large_string), which names each row and is no part of batches.

In the file the first variable-width column comes first, then all of fixed width, then what is left: so the values of
these are 64-byte aligned, and those of further variable-width columns to 8 bytes, which is all that Arrow's writer
grants behind offsets.

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
BYTES, IMAGE = "bytes", "image"
VARIABLE = (BYTES, IMAGE)  # codecs of variable width
CODECS = ("raw", *VARIABLE)
KINDS = ("samples", "tokens")

Kind = Literal["samples", "tokens"]


@dataclass(frozen=True)
class Column:
    """How one column is stored: `dtype` and `shape` of a row (of one element, for tokens; of the decoded row, for
    images). The shape of a variable-width column whose rows differ is (), in JSON null."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    codec: str = "raw"

    @property
    def variable(self) -> bool:
        """Whether rows are stored as byte strings of any length."""
        return self.codec in VARIABLE

    @property
    def elements(self) -> int:
        """Elements of a row. Raises ValueError where rows differ."""
        if self.variable and not self.shape:
            raise ValueError(f"rows of a column with codec {self.codec!r} and no shape differ in length")
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.elements * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        shape = None if self.variable and not self.shape else list(self.shape)
        return {"codec": self.codec, "dtype": self.dtype.name, "shape": shape}


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
        if kind == "tokens" and list(columns) != [TOKENS]:
            raise ValueError(f"columns {list(columns)} of a token shard")
        return kind, {name: _column(column, kind) for name, column in columns.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{what}: the shard's metadata is malformed ({error!r}).") from error


def _column(facts: dict[str, Any], kind: Kind) -> Column:
    """The column that `facts`, of `Column.to_json`, describe. Raises ValueError for a combination without meaning."""
    shape = facts["shape"]
    column = Column(storable(facts["dtype"]), tuple(map(int, shape or ())), facts["codec"])
    if column.to_json() != facts or min(column.shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    check_codec(column)
    if kind == "tokens" and column.variable:
        raise ValueError(f"tokens with codec {column.codec!r}")
    return column


def check_codec(column: Column) -> None:
    """Raise ValueError unless dtype and shape are such as the codec allows."""
    if column.variable and column.dtype != np.uint8:
        raise ValueError(f"codec {column.codec!r} with {column.dtype}: it has uint8")
    if column.codec == BYTES and column.shape:
        raise ValueError(f"codec 'bytes' with shape {list(column.shape)}: it has none")
    if column.codec == IMAGE and len(column.shape) not in (0, 3):
        raise ValueError(f"codec 'image' with shape {list(column.shape)}: it has [height, width, channels], or none")


def _unknown(what: str, of: str, found: object, known: Any) -> str:
    return (
        f"{what}: {of} {found!r}, but this Shardline reads {', '.join(map(repr, known))} only. "
        "Use the Shardline that wrote it, or make the shards again with `dvc repro --force shard`."
    )
