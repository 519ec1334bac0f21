"""Arrow IPC files of ours: batches that are views of the file, from bytes that nobody vouches for.

Our writers compress no buffer. One that is compressed is refused before it is unpacked, since a few bytes may claim to
hold any number of them. Everything else stays within the file, so what is read costs no memory.
"""

import struct

import pyarrow as pa
from typing_extensions import Buffer

_MAGIC = 8  # bytes, with padding, before the stream of messages
_HEADER, _COMPRESSION = 2, 3  # numbers of fields in Arrow's Message.fbs: of Message, and of RecordBatch
_DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError, RecursionError, MemoryError, struct.error)


class Malformed(ValueError):
    """The bytes are no such file; the text says why."""


def read_batches(data: Buffer) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and the batches of an Arrow file, not yet validated (see `validated`). Raises Malformed."""
    try:
        buffer = pa.py_buffer(data)
        with pa.ipc.open_file(buffer) as file:
            schema, count = file.schema, file.num_record_batches
        messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer.slice(_MAGIC)))
        head = _next(messages, "schema")  # Arrow takes the type for granted, and any other one for a schema's
        if not pa.ipc.read_schema(head).equals(schema, check_metadata=True):
            raise Malformed("its head and its foot don't agree about its columns")
        return schema, [_batch(_next(messages, "record batch"), schema) for _ in range(count)]
    except StopIteration as error:
        raise Malformed("it ends before its last batch") from error
    except _DAMAGED as error:
        raise Malformed(str(error)) from error


def _next(messages: pa.ipc.MessageReader, kind: str) -> pa.Message:
    message = messages.read_next_message()
    if message.type != kind:
        raise Malformed(f"a {message.type} where a {kind} belongs")
    return message


def _batch(message: pa.Message, schema: pa.Schema) -> pa.RecordBatch:
    if _is_compressed(message.metadata):
        raise Malformed("its buffers are compressed, which ours never are")
    return pa.ipc.read_record_batch(message, schema)


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether a record batch's header (a flatbuffer, which Arrow has verified) names a codec.

    https://flatbuffers.dev/internals; pyarrow doesn't tell.
    """
    data = memoryview(metadata)

    def field(table: int, number: int) -> int:
        """Where a table's field lies; 0 where it has none."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, vtable)[0]
        place = 4 + 2 * number
        offset = struct.unpack_from("<H", data, vtable + place)[0] if place < size else 0
        return table + offset if offset else 0

    message = struct.unpack_from("<I", data, 0)[0]
    header = field(message, _HEADER)
    batch = header + struct.unpack_from("<I", data, header)[0]
    return bool(field(batch, _COMPRESSION))


def validated(data: pa.RecordBatch | pa.Array, *, full: bool = True) -> None:
    """Check that its buffers are as long as they must be, and if `full` every offset and all text: until then, its rows
    may lead out of the file. Raises Malformed."""
    try:
        data.validate(full=full)
    except _DAMAGED as error:
        raise Malformed(str(error)) from error
