"""What the pages of a Parquet file claim to unpack to, each in a header of its own, whatever the footer says of them.

A header is a struct in Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/), in which
field 2 has the bytes of the unpacked page and field 3 those of the packed one, which follows.
"""

from typing import BinaryIO

_HEADERS = 1 << 10, 1 << 20  # bytes of a page that are read for its header: mostly enough; at most
_UNPACKED, _PACKED = 2, 3
_DEEPEST = 8  # structs within structs; Parquet's headers have three
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


def claimed(file: BinaryIO, start: int, stop: int) -> int:
    """Bytes of all unpacked pages of the column chunk from `start` to `stop` in a file, up to the first header that is
    none: there a reader stops, too. Reads a little of each page."""
    total = 0
    while start < stop:
        try:
            fields, size = _header(file, start, stop)
        except (IndexError, ValueError):
            break
        start += size
        unpacked, packed = fields.get(_UNPACKED, -1), fields.get(_PACKED, -1)
        if unpacked < 0 or packed < 0:
            break
        total, start = total + unpacked, start + packed
    return total


def _header(file: BinaryIO, start: int, stop: int) -> tuple[dict[int, int], int]:
    """The integers of the header at `start`, and its bytes. Raises IndexError, ValueError."""
    for most in _HEADERS:
        file.seek(start)
        data = file.read(min(most, stop - start))
        try:
            return _struct(data, 0)
        except (IndexError, ValueError):
            if len(data) < most or most == _HEADERS[-1]:
                raise
    raise AssertionError("one of the sizes is the last")


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, int], int]:
    """The integers among a struct's fields, by number, and where it ends. Raises IndexError, ValueError."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    fields, number = dict[int, int](), 0
    while head := data[at]:
        number, at = (number + (head >> 4), at + 1) if head >> 4 else _integer(data, at + 1)
        if head & 15 in _INTEGERS:
            fields[number], at = _integer(data, at)
        elif head & 15 not in _BOOLEANS:  # whose value is their type
            at = _skipped(data, at, head & 15, depth)
    return fields, at + 1


def _skipped(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value that begins at `at` ends."""
    if kind in (*_BOOLEANS, _BYTE):
        return at + 1
    if kind in _INTEGERS:
        return _integer(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)[1]
    if kind not in _LISTS:
        raise ValueError(f"no type {kind} in Parquet's headers")
    head = data[at]
    count, at = _varint(data, at + 1) if head >> 4 == 15 else (head >> 4, at + 1)
    for _ in range(count):
        at = _skipped(data, at, head & 15, depth + 1)
        if at > len(data):
            raise ValueError("cut off")
    return at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A number whose sign is in its last bit, and where it ends."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) & 0x80:
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | byte << shift, at + 1
