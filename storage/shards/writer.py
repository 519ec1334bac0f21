"""Encoding of shards. The same input always gives the same bytes: a shard's digest is its content's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import Buffer

from storage.shards.blobs import Blobs
from storage.shards.schema import ALIGNMENT, IDS, TOKENS, Column, Kind, encode_metadata, item, storable


def encode_samples(columns: Mapping[str, npt.NDArray[Any] | Blobs | Sequence[Buffer]], ids: Sequence[str]) -> pa.Buffer:
    """A shard of samples from one id a row and, for each column, an array [rows, *shape], or Blobs or a sequence of
    buffers where rows differ in length.

    Raises ValueError when the lengths differ or a name is taken, TypeError for a dtype that a shard cannot hold.
    """
    if not columns or IDS in columns:
        raise ValueError(f"columns {list(columns)}: at least one is needed, and {IDS!r} is taken by the ids")
    arrays = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
    blobs = {name: values for name, values in columns.items() if not isinstance(values, np.ndarray)}
    encoded: dict[str, tuple[Column, pa.Array]] = {}
    for name in [*list(blobs)[:1], *arrays, *list(blobs)[1:]]:  # the order that aligns the most
        encoded[name] = _fixed(name, arrays[name], len(ids)) if name in arrays else _binary(name, blobs[name], len(ids))
    before = 8 * (len(ids) + 1) if blobs else 0
    described = {name: column for name, (column, _) in encoded.items()}
    return _encode("samples", described, {name: stored for name, (_, stored) in encoded.items()}, ids, before)


def encode_tokens(
    tokens: npt.NDArray[np.unsignedinteger[Any]], offsets: npt.NDArray[np.integer[Any]], ids: Sequence[str]
) -> pa.Buffer:
    """A shard of documents: document i is tokens[offsets[i]:offsets[i+1]] of the stream `tokens` [n], and ids[i].

    Raises ValueError when the offsets don't rise from 0 to n or aren't one more than the ids.
    """
    bounds = np.ascontiguousarray(offsets, dtype=np.int64)
    if tokens.ndim != 1 or bounds.shape != (len(ids) + 1,):
        shapes = f"tokens {tokens.shape}, offsets {bounds.shape}"
        raise ValueError(f"{shapes}: a token stream and {len(ids) + 1} offsets belong to {len(ids)} ids")
    if bounds[0] != 0 or bounds[-1] != len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError(f"offsets must rise from 0 to the number of tokens, {len(tokens)}")
    stream = _values(tokens)
    kind = pa.large_list(item(stream.type))
    documents = pa.Array.from_buffers(kind, len(ids), [None, pa.py_buffer(bounds)], children=[stream])
    column = Column(storable(tokens.dtype))
    return _encode("tokens", {TOKENS: column}, {TOKENS: documents}, ids, before=bounds.nbytes)


def _fixed(name: str, values: npt.NDArray[Any], rows: int) -> tuple[Column, pa.Array]:
    if values.ndim < 1 or len(values) != rows:
        raise ValueError(f"column {name!r} has shape {values.shape}, but there are {rows} ids")
    column = Column(storable(values.dtype), values.shape[1:])
    flat = _values(values)
    if not column.shape:
        return column, flat
    kind = pa.list_(item(flat.type), column.elements)
    return column, pa.Array.from_buffers(kind, rows, [None], children=[flat])


def _binary(name: str, values: Blobs | Sequence[Buffer], rows: int) -> tuple[Column, pa.Array]:
    blobs = values if isinstance(values, Blobs) else Blobs.of(values)
    if len(blobs) != rows:
        raise ValueError(f"column {name!r} has {len(blobs)} blobs, but there are {rows} ids")
    buffers = [None, pa.py_buffer(blobs.offsets), _padded(blobs.values)]
    column = Column(np.dtype(np.uint8), blobs.shape, blobs.codec)
    return column, pa.Array.from_buffers(pa.large_binary(), rows, buffers)


def _values(values: npt.NDArray[Any]) -> pa.Array:
    """All elements of `values` in C order as a flat Arrow array."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, _padded(values)])


def _padded(values: npt.NDArray[Any]) -> pa.Buffer:
    """The bytes of `values` in C order, zero-padded to the alignment.

    Arrow writes that padding out, so that the next column's buffer is aligned too.
    """
    padded = np.empty(-(-values.nbytes // ALIGNMENT) * ALIGNMENT, dtype=np.uint8)
    padded[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    padded[values.nbytes :] = 0
    return pa.py_buffer(padded)


def _encode(
    kind: Kind, columns: dict[str, Column], arrays: dict[str, pa.Array], ids: Sequence[str], before: int = 0
) -> pa.Buffer:
    """The file's bytes. `before` bytes of offsets come first; what follows them is what must be aligned."""
    everything = {**arrays, IDS: pa.array(ids, pa.large_string())}
    fields = [pa.field(name, array.type, nullable=False) for name, array in everything.items()]

    def batch(padding: int) -> pa.RecordBatch:
        schema = pa.schema(fields, encode_metadata(kind, columns, padding))
        return pa.RecordBatch.from_arrays(list(everything.values()), schema=schema)

    # Arrow aligns the batch to only 8 bytes within the file. The rest is padding in the schema's metadata, measured on
    # a batch of the same layout without most of its rows.
    begin = _body_offset(_to_ipc(batch(0).slice(0, 1))) + before
    encoded = _to_ipc(batch(-begin % ALIGNMENT))
    assert (_body_offset(encoded) + before) % ALIGNMENT == 0
    return encoded


def _to_ipc(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=None, allow_64bit=True)
    ) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _body_offset(encoded: pa.Buffer) -> int:
    """Where in the file the batch's buffers begin: after the magic, the schema and the batch's own header."""
    source = pa.BufferReader(encoded)
    source.seek(8)
    pa.ipc.read_schema(source)
    position = int(source.tell())
    header = int.from_bytes(encoded.slice(position + 4, 4).to_pybytes(), "little")  # after a continuation marker
    return position + 8 + header
