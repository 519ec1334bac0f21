"""The shard format at its edges."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.digest import digest_bytes
from storage.errors import DataError, DigestError, FormatError
from storage.shards import Shard, encode_samples, encode_tokens
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
        ('"codec":"raw"', '"codec":"jxl"', r"codec of column 'label' 'jxl', but this Shardline reads 'raw' only"),
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
