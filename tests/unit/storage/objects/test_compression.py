"""Objects compressed at rest: what goes in comes out, and damage is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cache import NodeCache, Tiered
from storage.digest import digest_bytes
from storage.errors import DigestError, LakeError
from storage.lake import Zone
from storage.objects.compression import Compression, compress, decompress, decompress_into, digest_plain, plain_size

sizes = st.sampled_from([0, 1, 255, 256, 65_791, 65_792, 300_000]) | st.integers(0, 70_000)


def packed(data: bytes) -> bytes:
    frame = compress(data, "zstd")
    assert frame is not None
    return bytes(frame)


@given(sizes, st.integers(0, 3))
def test_what_goes_in_comes_out(size: int, values: int) -> None:
    data = np.random.default_rng(size).integers(0, 4**values, size).astype(np.uint8).tobytes()
    frame = packed(data)
    assert plain_size(frame) == size
    assert decompress(frame).to_pybytes() == data
    assert digest_plain(frame) == digest_bytes(data)
    out = bytearray(size)
    decompress_into(memoryview(frame), memoryview(out))
    assert out == data


@given(st.data())
def test_a_damaged_frame_is_told_or_gives_other_bytes(data: st.DataObject) -> None:
    text = b"all work and no play " * 500
    frame = packed(text)
    at, bit = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, 7))
    damaged = frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :]
    try:
        plain = decompress(damaged).to_pybytes()
    except ValueError:
        pass
    else:
        assert digest_plain(damaged) == digest_bytes(plain)
    for cut in (frame[:at], frame + frame[: at + 1]):
        with pytest.raises(ValueError, match=r"zstd|holds"):
            decompress(cut)


def test_bytes_that_were_never_compressed_are_told() -> None:
    for data in (b"", b"ARROW1", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00\x00\x00\x00\x00"):
        with pytest.raises(ValueError, match="zstd frame"):
            decompress(data)
    huge = b"\x28\xb5\x2f\xfd\xc0" + b"\x00" + b"\xff" * 7 + b"\x7f"
    with pytest.raises(ValueError, match="states"):
        decompress(huge)


@pytest.mark.parametrize(("how", "shrinks"), [("none", False), ("auto", True), ("zstd", True)])
def test_how_decides(how: Compression, shrinks: bool) -> None:
    text, noise = b"words, " * 10_000, np.random.default_rng(0).bytes(70_000)
    assert (compress(text, how) is not None) == shrinks
    assert (compress(noise, how) is not None) == (how == "zstd")
    tenth = np.random.default_rng(0).bytes(62_000) + bytes(8_000)  # saves a little more than 10 %
    assert (compress(tenth, how) is not None) == shrinks
    assert compress(noise[:66_000] + bytes(4_000), "auto") is None


def test_a_buffer_of_arrow_is_compressed_without_a_copy_of_bytes() -> None:
    column = pa.py_buffer(np.arange(10_000))
    frame = compress(column, "zstd")
    assert frame is not None
    assert decompress(frame) == column


def test_no_more_is_unpacked_than_belongs_there() -> None:
    """A frame of some kilobytes may hold gigabytes."""
    frame = compress(bytes(8 << 20), "zstd")
    assert frame is not None
    assert digest_plain(frame, 8 << 20) == digest_bytes(bytes(8 << 20))
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match="states 8388608 bytes where 100 belong"):
        decompress(frame, 100)
    assert pa.default_memory_pool().max_memory() == before
    with pytest.raises(ValueError, match="more bytes than belong there"):
        digest_plain(frame, 100)
    assert digest_plain(frame, 8 << 20 | 1) == digest_plain(frame)


def test_a_compressed_object_that_claims_too_much_is_named(tmp_path: Path) -> None:
    zone = Zone(tmp_path, "memory://bombs")
    stored = zone.publish(bytes(8 << 20), ".arrow", "zstd")
    assert zone.read(stored.path, stored.digest, plain_bytes=8 << 20) == bytes(8 << 20)
    with pytest.raises(DigestError, match="states 8388608 bytes where 100 belong"):
        zone.read(stored.path, stored.digest, plain_bytes=100)
    with pytest.raises(DigestError, match="more bytes than belong"):
        zone.verify(stored.path, stored.digest, 100)


@pytest.mark.parametrize("tier", ["none", "node"])
@pytest.mark.parametrize("claim", [1 << 62, 1 << 50])
def test_a_shard_that_claims_more_than_there_is_memory_is_named(tmp_path: Path, claim: int, tier: str) -> None:
    zone = Zone(tmp_path / "zone", "memory://claims")
    stored = replace(zone.publish(b"abc", ".arrow"), plain_bytes=claim)
    node = NodeCache(tmp_path / "node", 1 << 63) if tier == "node" else None
    with Tiered(zone, node) as cache, pytest.raises(LakeError, match=f"says that it has {claim:,} bytes"):
        cache.fetch(stored)
    with pytest.raises(LakeError, match="said to have"):
        zone.read(stored.path, size=1 << 62)
