"""The shard format at its edges."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.digest import digest_bytes
from storage.errors import DataError, DigestError, FormatError
from storage.shards import Blobs, Column, Shard, encode_samples, encode_tokens
from storage.shards.schema import METADATA_KEY


@pytest.fixture
def encoded() -> bytes:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    return bytes(encode_samples({"x": images, "label": np.arange(5)}, list("abcde")))


def rewritten(encoded: bytes, old: str, new: str) -> bytes:
    """The same Arrow file with another text in its Shardline metadata."""
    table = pa.ipc.open_file(encoded).read_all()
    metadata = {METADATA_KEY: table.schema.metadata[METADATA_KEY].replace(old.encode(), new.encode())}
    assert metadata != table.schema.metadata
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        writer.write_batch(table.replace_schema_metadata(metadata).to_batches()[0])
    return bytes(sink.getvalue())


def test_the_format_is_pinned(encoded: bytes) -> None:
    """Shards are content-addressed: other bytes for the same samples would make every dataset a new version."""
    assert digest_bytes(encoded)[:16] == "30b6532539914498"
    tokens = encode_tokens(np.arange(9, dtype=np.uint16), np.array([0, 4, 9]), ["a", "b"])
    assert digest_bytes(tokens)[:16] == "eb58443921d3ceae"
    blobs = encode_samples({"label": np.arange(3), "image": Blobs.of([b"one", b"", b"three"], "image")}, list("abc"))
    assert digest_bytes(blobs)[:16] == "80d7b29756671058"


def test_a_mapped_file_is_the_array(encoded: bytes, tmp_path: Path) -> None:
    file = tmp_path / "shard.arrow"
    file.write_bytes(encoded)
    before = pa.total_allocated_bytes()
    shard = Shard.open(file, digest=digest_bytes(encoded))
    images = shard.column("x")
    assert pa.total_allocated_bytes() == before
    assert shard.buffer.address <= images.ctypes.data < shard.buffer.address + len(encoded)
    assert not images.flags.writeable
    del shard
    assert images.sum() == np.arange(240, dtype=np.uint8).sum()  # still mapped


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format":1', '"format":2', r"shard format 2, but this Shardline reads 1 only"),
        (
            '"codec":"raw"',
            '"codec":"jxl"',
            r"codec of column 'label' 'jxl', but this Shardline reads 'raw', 'bytes', 'image' only",
        ),
        (
            '"kind":"samples"',
            '"kind":"graphs"',
            r"kind of shard 'graphs', but this Shardline reads 'samples', 'tokens'",
        ),
        ('"dtype":"int64"', '"dtype":"int32"', r"column 'label' is malformed"),
        ('"dtype":"int64"', '"dtype":"object"', r"metadata is malformed"),
        ('"shape":[4,4,3]', '"shape":[4,4,2]', r"column 'x' is malformed"),
        ('"columns"', '"colons"', r"metadata is malformed"),
        ('{"columns"', '{"columns', r"says nothing"),
    ],
)
def test_what_the_reader_does_not_know_is_refused_by_name(encoded: bytes, old: str, new: str, message: str) -> None:
    with pytest.raises(FormatError, match=f"zone/s.arrow: .*{message}"):
        Shard.open(rewritten(encoded, old, new), "zone/s.arrow")


def test_other_files_are_refused(tmp_path: Path) -> None:
    table = pa.table({"a": [1]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(FormatError, match="no Shardline shard"):
        Shard.open(bytes(sink.getvalue()))
    for content in (b"", b"text", bytes(1000)):
        file = tmp_path / "other"
        file.write_bytes(content)
        with pytest.raises((FormatError, DataError), match=str(file)):
            Shard.open(file)
    with pytest.raises(DataError, match=r"missing\.arrow: no such shard"):
        Shard.open(tmp_path / "missing.arrow")
    with pytest.raises(DataError, match="cannot be read"):
        Shard.open(tmp_path)


def test_a_flipped_bit_is_found_by_the_digest_before_anything_is_read(encoded: bytes) -> None:
    digest = digest_bytes(encoded)
    for place in range(0, len(encoded), 37):
        damaged = bytearray(encoded)
        damaged[place] ^= 4
        with pytest.raises(DigestError, match=f"zone/s.arrow: .*{digest}.*{digest_bytes(damaged)}"):
            Shard.open(bytes(damaged), "zone/s.arrow", digest)


def test_a_missing_column_is_named(encoded: bytes) -> None:
    with pytest.raises(DataError, match="no column 'y', but label, x"):
        Shard.open(encoded).column("y")


def test_what_a_shard_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold bool"):
        encode_samples({"x": np.zeros(2, bool)}, ["a", "b"])
    with pytest.raises(ValueError, match="there are 1 ids"):
        encode_samples({"x": np.zeros(2)}, ["a"])
    with pytest.raises(ValueError, match="'id' is taken"):
        encode_samples({"id": np.zeros(1)}, ["a"])
    with pytest.raises(ValueError, match="rise from 0"):
        encode_tokens(np.zeros(3, np.uint16), np.array([0, 2]), ["a"])
    with pytest.raises(ValueError, match="2 offsets belong to 1 ids"):
        encode_tokens(np.zeros(3, np.uint16), np.array([0, 2, 3]), ["a"])


def test_values_of_any_memory_layout_are_stored_in_row_order() -> None:
    values = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    assert np.array_equal(Shard.open(encode_samples({"x": values}, list("abcd"))).column("x"), values)


@pytest.fixture
def blobs() -> bytes:
    images = Blobs.of([b"abc", b"", b"defgh"], "image", (2, 2, 3))
    return bytes(encode_samples({"label": np.arange(3), "image": images, "note": [b"x"] * 3}, list("abc")))


def test_blobs_are_views_of_the_mapped_file(blobs: bytes, tmp_path: Path) -> None:
    file = tmp_path / "shard.arrow"
    file.write_bytes(blobs)
    before = pa.total_allocated_bytes()
    shard = Shard.open(file)
    values, offsets = shard.blobs("image")
    assert pa.total_allocated_bytes() == before
    assert shard.buffer.address <= values.ctypes.data < shard.buffer.address + len(blobs)
    assert shard.buffer.address <= offsets.ctypes.data < shard.buffer.address + len(blobs)
    assert (values.tobytes(), offsets.tolist()) == (b"abcdefgh", [0, 3, 3, 8])
    assert not values.flags.writeable
    uint8 = np.dtype(np.uint8)
    assert shard.columns["image"] == Column(uint8, (2, 2, 3), "image")
    assert shard.columns["note"] == Column(uint8, (), "bytes")
    assert shard.columns["image"].elements == 12
    with pytest.raises(ValueError, match="differ in length"):
        _ = shard.columns["note"].elements


def test_each_kind_of_column_has_its_own_access(blobs: bytes) -> None:
    shard = Shard.open(blobs, "zone/s.arrow")
    with pytest.raises(DataError, match=r"zone/s\.arrow: column 'image' has codec 'image', so it is no array"):
        shard.column("image")
    with pytest.raises(DataError, match=r"zone/s\.arrow: column 'label' is of fixed width, so it has no blobs"):
        shard.blobs("label")
    with pytest.raises(DataError, match=r"zone/s\.arrow: no column 'y', but image, label, note"):
        shard.blobs("y")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"codec":"image"', '"codec":"jxl"', r"codec of column 'image' 'jxl', but this Shardline reads 'raw', 'bytes'"),
        ('"codec":"image"', '"codec":"bytes"', r"malformed .*codec 'bytes' with shape \[2, 2, 3\]"),
        ('"codec":"image"', '"codec":"raw"', r"column 'image' is malformed: it holds large_binary"),
        ('"shape":[2,2,3]', '"shape":[2,2]', r"malformed .*codec 'image' with shape \[2, 2\]"),
        ('"shape":[2,2,3]', '"shape":[2,-2,3]', r"metadata is malformed"),
        ('"shape":[]', '"shape":null', r"metadata is malformed"),
        ('"dtype":"uint8","shape":null', '"dtype":"int8","shape":null', r"malformed .*codec 'bytes' with int8"),
        ('"codec":"raw","dtype":"int64","shape":[]', '"codec":"bytes","dtype":"uint8","shape":null', r"holds int64"),
        ('"kind":"samples"', '"kind":"tokens"', r"metadata is malformed .*of a token shard"),
    ],
)
def test_a_variable_width_column_that_makes_no_sense_is_refused(blobs: bytes, old: str, new: str, message: str) -> None:
    with pytest.raises(FormatError, match=f"zone/s.arrow: .*{message}"):
        Shard.open(rewritten(blobs, old, new), "zone/s.arrow")


@pytest.mark.parametrize(
    "offsets", [[0, 3, 2, 8], [1, 3, 3, 8], [0, 3, 3, 1 << 40], [0, 1 << 40, 3, 8], [-8, 3, 3, 8], [0, 9, 9, 8]]
)
@pytest.mark.parametrize("kind", ["blobs", "tokens"])
def test_offsets_that_lead_out_of_the_values_are_refused(kind: str, offsets: list[int]) -> None:
    """Addresses are made of them, so nothing else would stop them."""
    good = np.array([0, 3, 3, 8])
    if kind == "blobs":
        encoded = bytes(encode_samples({"x": [b"abc", b"", b"defgh"]}, list("abc")))
    else:
        encoded = bytes(encode_tokens(np.arange(8, dtype=np.uint8), good, list("abc")))
    assert encoded.count(good.tobytes()) == 1
    name = "x" if kind == "blobs" else "tokens"
    with pytest.raises(FormatError, match=rf"zone/s.arrow: (column '{name}' is malformed: .*offsets|not a shard)"):
        Shard.open(encoded.replace(good.tobytes(), np.array(offsets).tobytes()), "zone/s.arrow")


@pytest.mark.parametrize("offsets", [[0, 1, 0, 3], [0, 1, 2, 1 << 40], [-8, 1, 2, 3], [0, 1 << 40, 2, 3]])
def test_ids_are_checked_before_they_are_used(offsets: list[int]) -> None:
    """Arrow follows them wherever they lead; a stream that never asks for names doesn't pay for them."""
    encoded = bytes(encode_samples({"x": np.arange(3)}, list("abc")))
    good = np.arange(4).tobytes()
    damaged = encoded[: encoded.rfind(good)] + np.array(offsets).tobytes() + encoded[encoded.rfind(good) + len(good) :]
    with pytest.raises(FormatError, match=r"zone/s.arrow: (column 'id' is malformed|not a shard)"):
        _ = Shard.open(damaged, "zone/s.arrow").ids
    assert Shard.open(encoded).ids.to_pylist() == list("abc")


def test_ids_that_are_no_text_are_refused() -> None:
    encoded = bytes(encode_samples({"x": np.arange(3)}, ["name", "b", "c"]))
    with pytest.raises(FormatError, match=r"zone/s.arrow: column 'id' is malformed"):
        _ = Shard.open(encoded.replace(b"name", b"\xff\xfe\xfd\xfc"), "zone/s.arrow").ids


def test_a_compressed_shard_is_refused_before_it_is_unpacked() -> None:
    """Some hundred bytes may claim to hold terabytes."""
    table = pa.ipc.open_file(encode_samples({"x": np.zeros(1 << 20)}, [""] * (1 << 20))).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(table.to_batches()[0])
    before = pa.total_allocated_bytes()
    with pytest.raises(FormatError, match="compressed"):
        Shard.open(sink.getvalue())
    assert pa.total_allocated_bytes() == before


def test_blobs_that_are_none_are_refused() -> None:
    values = np.zeros(4, np.uint8)
    for offsets in ([0, 3], [1, 4], [0, 5], [0, 3, 2, 4], []):
        with pytest.raises(ValueError, match=r"rise from 0|rows \+ 1 offsets"):
            Blobs(values, np.array(offsets, np.int64))
    with pytest.raises(TypeError, match="int64 offsets"):
        Blobs(values, np.array([0, 4], np.int32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codec 'jxl': blobs have one of bytes, image"):
        Blobs(values, np.array([0, 4]), "jxl")
    with pytest.raises(ValueError, match="codec 'bytes' with shape"):
        Blobs(values, np.array([0, 4]), "bytes", (2, 2, 1))
    with pytest.raises(ValueError, match="'x' has 1 blobs, but there are 2 ids"):
        encode_samples({"x": [b"a"]}, ["a", "b"])


def test_blobs_beyond_4_gib_have_64_bit_offsets(tmp_path: Path) -> None:
    """Of a sparse file that is never touched, but for the few rows that are read."""
    size = (5 << 30) + 3
    values: Any = np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=(size,))
    values[(4 << 30) + 1 : (4 << 30) + 4] = [1, 2, 3]
    blobs = Blobs(values, np.array([0, (4 << 30) + 1, (4 << 30) + 4, size]))
    assert bytes(blobs[1]) == b"\1\2\3"
    assert len(blobs[0]) == (4 << 30) + 1
