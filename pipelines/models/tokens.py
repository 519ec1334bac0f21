"""Which tokens are bytes: what bits per byte, compressors and written text need to know."""

from collections.abc import Mapping
from typing import Any

_BYTES = 256


def why_no_bytes(spec: Mapping[str, Any]) -> str | None:
    """Why nobody knows the bytes of data with this spec (the shards manifest's), in words for a message; None where
    token t < 256 is the byte t, and the separator the only other one."""
    encoding, vocabulary, separator = spec.get("encoding"), spec["vocab_size"], spec.get("separator")
    if encoding != "bytes":
        return f"their encoding is {encoding!r}, and Shardline knows the bytes of 'bytes' only"
    if separator is not None and separator < _BYTES:
        return f"their separator is {separator}, which is a byte as well"
    if vocabulary > _BYTES + (separator is not None):
        beside = "" if separator is None else " and the separator"
        return f"their vocabulary of {vocabulary} has tokens beside the {_BYTES} bytes{beside}"
    return None
