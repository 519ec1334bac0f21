"""BLAKE3 digests of bytes, files and JSON values, and keyed hashing (https://github.com/BLAKE3-team/BLAKE3-specs)."""

import json
import re
from pathlib import Path
from typing import Any

from blake3 import blake3
from typing_extensions import Buffer

from storage.mapped import map_file

DIGEST_LENGTH = 64  # hexadecimal characters
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Whether it is a digest as these functions write it; so it may be a file's name."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def digest_bytes(data: Buffer) -> str:
    """Hexadecimal BLAKE3 of a bytes-like object; no copy is made."""
    return blake3(data).hexdigest()


def digest_file(path: Path) -> str:
    """Hexadecimal BLAKE3 of a file, mapped rather than read."""
    return digest_bytes(map_file(path))


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_json(value: Any) -> str:
    """Hexadecimal BLAKE3 of a JSON value, independent of the order of its keys."""
    return digest_bytes(canonical_json(value))


def keyed_uint64(*parts: Any) -> int:
    """A uniform 64-bit integer that depends on nothing but `parts` (JSON values)."""
    return int.from_bytes(blake3(canonical_json(parts)).digest(length=8), "little")


def keyed_fraction(*parts: Any) -> float:
    """A uniform float in [0, 1) that depends on nothing but `parts`."""
    return (keyed_uint64(*parts) >> 11) / (1 << 53)
