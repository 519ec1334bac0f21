"""Shards give back what was put in, the same bytes for the same input, and never a raw Arrow error."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import FormatError
from storage.shards import Blobs, Shard, encode_samples, encode_tokens

DTYPES = ["uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]


@st.composite
def samples(draw: st.DrawFn) -> tuple[dict[str, np.ndarray[Any, Any]], list[str]]:
    rows = draw(st.integers(0, 7))
    columns = {}
    for name in draw(st.lists(st.sampled_from(["x", "label", "mask", "ä b"]), min_size=1, unique=True)):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
        columns[name] = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), (rows, *shape)))
    return columns, draw(st.lists(st.text(max_size=9), min_size=rows, max_size=rows))


@given(samples())
def test_samples_round_trip(given_: tuple[dict[str, np.ndarray[Any, Any]], list[str]]) -> None:
    columns, ids = given_
    encoded = encode_samples(columns, ids)
    shard = Shard.open(encoded)
    assert (shard.kind, shard.rows, shard.ids.to_pylist()) == ("samples", len(ids), ids)
    assert set(shard.columns) == set(columns)
    for name, values in columns.items():
        stored = shard.column(name)
        assert stored.dtype == values.dtype
        np.testing.assert_array_equal(stored, values)
        assert len(ids) == 0 or (stored.ctypes.data - shard.buffer.address) % 64 == 0
    assert encode_samples({name: values.copy() for name, values in columns.items()}, list(ids)) == encoded


@given(st.lists(st.lists(st.integers(0, 65535), max_size=20), max_size=6))
def test_tokens_round_trip(documents: list[list[int]]) -> None:
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, documents)])
    shard = Shard.open(encode_tokens(tokens, offsets, [f"doc {i}" for i in range(len(documents))]))
    assert (shard.kind, shard.rows) == ("tokens", len(documents))
    assert shard.tokens.tolist() == tokens.tolist()
    assert shard.offsets.dtype == np.int64
    assert shard.offsets.tolist() == offsets.tolist()
    assert not len(tokens) or (shard.tokens.ctypes.data - shard.buffer.address) % 64 == 0


@st.composite
def ragged(draw: st.DrawFn) -> tuple[dict[str, list[bytes]], list[int]]:
    """Up to three columns of blobs, and a label a row."""
    rows = draw(st.integers(0, 7))
    names = draw(st.lists(st.sampled_from(["image", "caption", "z"]), min_size=1, unique=True))
    blobs = st.lists(st.binary(max_size=90), min_size=rows, max_size=rows)
    return {name: draw(blobs) for name in names}, draw(st.lists(st.integers(-9, 9), min_size=rows, max_size=rows))


@given(ragged())
def test_blobs_round_trip(given_: tuple[dict[str, list[bytes]], list[int]]) -> None:
    columns, labels = given_
    ids = [f"row {row}" for row in range(len(labels))]
    encoded = encode_samples({"label": np.array(labels, np.int64), **columns}, ids)
    shard = Shard.open(encoded)
    assert shard.ids.to_pylist() == ids
    assert shard.column("label").tolist() == labels
    assert not labels or (shard.column("label").ctypes.data - shard.buffer.address) % 64 == 0
    for name, rows in columns.items():
        values, offsets = shard.blobs(name)
        assert (values.dtype, offsets.dtype, len(offsets)) == (np.uint8, np.int64, len(rows) + 1)
        assert [values[a:b].tobytes() for a, b in pairwise(offsets)] == rows
        again = Blobs(values, offsets)
        assert [bytes(again[row]) for row in range(len(again))] == rows
    first = shard.blobs(next(iter(columns)))[0]
    assert not len(first) or (first.ctypes.data - shard.buffer.address) % 64 == 0
    assert encode_samples({"label": np.array(labels, np.int64), **columns}, ids) == encoded


ENCODED = {
    "tokens": encode_tokens(np.arange(40, dtype=np.uint16), np.array([0, 15, 15, 40]), ["a", "b", "c"]).to_pybytes(),
    "blobs": encode_samples({"blobs": [b"abc", b"", b"d" * 60]}, ["a", "b", "c"]).to_pybytes(),
}


@given(st.data(), st.sampled_from(sorted(ENCODED)))
def test_a_shard_cut_off_anywhere_is_refused_by_name(data: st.DataObject, kind: str) -> None:
    length = data.draw(st.integers(0, len(ENCODED[kind]) - 1))
    with pytest.raises(FormatError, match=r"a/b\.arrow: not a shard, or cut off"):
        Shard.open(ENCODED[kind][:length], "a/b.arrow")


@given(st.data(), st.sampled_from(sorted(ENCODED)))
def test_a_flipped_bit_never_gives_a_foreign_error(data: st.DataObject, kind: str) -> None:
    """Without a digest, damage to the values can't be seen; damage to the structure is reported by name, and the
    offsets of what opens lie within the values."""
    damaged = bytearray(ENCODED[kind])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    message = ""
    try:
        shard = Shard.open(bytes(damaged), "a/b.arrow")
        for name, column in shard.columns.items():
            values, offsets = shard.blobs(name) if column.variable else (shard.column(name), shard.offsets)
            assert offsets[0] == 0
            assert (np.diff(offsets) >= 0).all()
            assert offsets[-1] <= len(values)
    except FormatError as error:
        message = str(error)
    assert not message or message.startswith("a/b.arrow: ")
