"""Encoding of shards. The same input always gives the same bytes: a shard's digest is its content's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.shards.schema import ALIGNMENT, IDS, TOKENS, Column, Kind, encode_metadata, item, storable


def encode_samples(columns: Mapping[str, npt.NDArray[Any]], ids: Sequence[str]) -> pa.Buffer:
    """A shard of samples from arrays [rows, *shape] and one id a row.

    Raises ValueError when the lengths differ or a name is taken, TypeError for a dtype that a shard cannot hold.
    """
    if not columns or IDS in columns:
        raise ValueError(f"columns {list(columns)}: at least one is needed, and {IDS!r} is taken by the ids")
    described: dict[str, Column] = {}
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if values.ndim < 1 or len(values) != len(ids):
            raise ValueError(f"column {name!r} has shape {values.shape}, but there are {len(ids)} ids")
        column = described[name] = Column(storable(values.dtype), values.shape[1:])
        flat = _values(values)
        if column.shape:
            rows = pa.list_(item(flat.type), column.elements)
            arrays[name] = pa.Array.from_buffers(rows, len(ids), [None], children=[flat])
        else:
            arrays[name] = flat
    return _encode("samples", described, arrays, ids)


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


def _values(values: npt.NDArray[Any]) -> pa.Array:
    """All elements of `values` in C order as a flat Arrow array whose buffer is zero-padded to the alignment.

    Arrow writes that padding out, so that the next column's buffer is aligned too.
    """
    padded = np.zeros(-(-values.nbytes // ALIGNMENT) * ALIGNMENT, dtype=np.uint8)
    padded[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(padded)])


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
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
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
