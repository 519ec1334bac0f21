"""Objects compressed at rest: one zstd frame (RFC 8878) that states its plain size, in an object named `….zst`."""

from typing import Literal

import pyarrow as pa
from blake3 import blake3
from typing_extensions import Buffer

SUFFIX = ".zst"
Compression = Literal["auto", "none", "zstd"]

_LEVEL = 3  # a twentieth smaller than level 1 on tokens, and as fast to decompress
_WORTHWHILE = 0.9  # share of the plain bytes up to which `auto` compresses
_CHUNK = 1 << 20  # bytes
_MAGIC = b"\x28\xb5\x2f\xfd"


def is_compressed(path: str) -> bool:
    """Whether the object at `path` is compressed at rest."""
    return path.endswith(SUFFIX)


def compress(data: Buffer, how: Compression) -> pa.Buffer | None:
    """`data` as a zstd frame; None where it stays plain, as with `auto` if less than 10 % were saved."""
    if how == "none":
        return None
    plain = pa.py_buffer(data)
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(plain)
    return packed if how == "zstd" or packed.size <= _WORTHWHILE * plain.size else None


def plain_size(data: Buffer) -> int:
    """How many bytes the zstd frame `data` says that it holds. Raises ValueError if it is none."""
    head = bytes(memoryview(data)[:18])
    if len(head) < 6 or head[:4] != _MAGIC:
        raise ValueError("it doesn't begin as a zstd frame does")
    flag, single = head[4] >> 6, bool(head[4] & 32)
    width = (1 if single else 0, 2, 4, 8)[flag]
    if not width:
        raise ValueError("its zstd frame states no size")
    begin = 5 + (not single) + (0, 1, 2, 4)[head[4] & 3]  # after the window's size and the dictionary's number
    return int.from_bytes(head[begin : begin + width], "little") + (256 if width == 2 else 0)


def decompress_into(data: Buffer, out: memoryview) -> None:
    """Fill `out`, writable bytes, with what the zstd frame `data` holds; outside the GIL, with no copy of the whole.

    Raises ValueError if `data` cannot be decompressed or holds another number of bytes.
    """
    view, at = memoryview(out).cast("B"), 0
    try:
        with pa.input_stream(pa.py_buffer(data), compression="zstd") as source:
            while at < view.nbytes and (count := source.readinto(view[at:])):
                at += count
            rest = source.read(1) if at == view.nbytes else b""
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"zstd cannot decompress it ({error})") from error
    if at < view.nbytes or rest:
        raise ValueError(f"it holds {'more' if rest else at} bytes where {view.nbytes} belong")


def decompress(data: Buffer, plain_bytes: int | None = None) -> pa.Buffer:
    """What the zstd frame `data` holds: `plain_bytes`, where that is known. Raises ValueError if it cannot be
    decompressed or holds another number of bytes."""
    size = plain_size(data)
    if plain_bytes not in (None, size):
        raise ValueError(f"its zstd frame states {size} bytes where {plain_bytes} belong")
    try:
        out = pa.allocate_buffer(size)
    except MemoryError as error:
        raise ValueError(f"its zstd frame states {size} bytes") from error
    decompress_into(data, memoryview(out))
    return out


def digest_plain(data: Buffer, plain_bytes: int | None = None) -> str:
    """Hexadecimal BLAKE3 of what the zstd frame `data` holds, in bounded memory; not more than `plain_bytes` are
    unpacked, or what the frame states where that isn't known. Raises ValueError."""
    hasher, left = blake3(), plain_size(data) if plain_bytes is None else plain_bytes
    try:
        with pa.input_stream(pa.py_buffer(data), compression="zstd") as source:
            while piece := source.read(_CHUNK):
                left -= len(piece)
                if left < 0:
                    raise ValueError("it holds more bytes than belong there")
                hasher.update(piece)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"zstd cannot decompress it ({error})") from error
    return hasher.hexdigest()
