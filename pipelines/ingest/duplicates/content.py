"""What two samples are compared by: digests of 128 bits, and the split that follows from one.

A sample's split depends on the seed and its own digest alone: nobody else's coming or going moves it, and equal samples
share a split, in whatever files they stand.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from blake3 import blake3
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipelines.params.data import Split
from storage.digest import keyed_uint64

Digests = NDArray[np.uint64]  # [rows, 2]
SPLITS = ("train", "val", "test")
BINARY = pa.binary(16)  # of a digest in Arrow
_BYTES = 16
#: The columns that are a sample's input, by kind; of a table all features are.
_INPUTS = {"text": "text", "image": "image"}


def input_digests(table: pa.Table, kind: str) -> Digests:
    """Of what a model sees of each row: the text, the image file's bytes, or the features (by name, as the float32 that
    they become in shards). Not of the label: one input with two labels is no sample to be tested on."""
    if kind in _INPUTS:
        return digests_of(value.as_buffer() for value in table[_INPUTS[kind]])
    features = sorted(name for name in table.column_names if name != "label")
    rows = np.empty((table.num_rows, len(features)), np.float32)
    for place, name in enumerate(features):
        rows[:, place] = table[name].to_numpy()
    rows += 0.0  # -0.0 equals 0.0
    data, width = memoryview(rows.data).cast("B"), 4 * len(features)
    return digests_of(data[start : start + width] for start in range(0, len(data), width))


def value_digests(column: pa.ChunkedArray) -> Digests:
    """Of each value's text; one that is null has one of its own."""
    encoded = pa.compute.dictionary_encode(column.cast(pa.string()), null_encoding="encode").combine_chunks()
    texts = encoded.dictionary.to_pylist()
    known = digests_of(b"" if text is None else b":" + text.encode() for text in texts)
    found: Digests = known[encoded.indices.to_numpy()]
    return found


def sample_digests(table: pa.Table, inputs: Digests, content: pa.Array) -> Digests:
    """By which rows count as duplicates: all that their files hold of them (`content`, of the reader), as it was read.

    Of two CSV files with other headers, equal lines are other samples."""
    parts = [inputs, *([value_digests(table["label"])] if "label" in table.column_names else [])]
    digests = from_arrow(content)
    for part in parts:
        digests = _mixed(digests) + part  # not plain sums, since the content may be the input
    return digests


def splits(digests: Digests, seed: int, shares: Split) -> NDArray[np.int64]:
    """Which of SPLITS each digest belongs to, [rows]."""
    numbers = _mixed(digests[:, 0] ^ np.uint64(keyed_uint64("split", seed)))
    fractions = (numbers >> np.uint64(11)) / float(1 << 53)
    return np.searchsorted([shares.train, shares.train + shares.val], fractions, side="right")


def digests_of(values: Iterable[Buffer]) -> Digests:
    """Of bytes: the first half of their BLAKE3."""
    digests = b"".join(_digest(value) for value in values)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def to_arrow(digests: Digests) -> pa.FixedSizeBinaryArray:
    """Digests as BINARY."""
    data = np.ascontiguousarray(digests)
    return pa.FixedSizeBinaryArray.from_buffers(BINARY, len(data), [None, pa.py_buffer(data)])


def from_arrow(array: pa.Array | pa.ChunkedArray) -> Digests:
    """Such an array, which has no nulls, as digests; without a copy where it is in one piece."""
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    start = whole.offset * _BYTES
    data = memoryview(whole.buffers()[1])[start : start + len(whole) * _BYTES] if len(whole) else b""
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def _digest(value: Buffer) -> bytes:
    return blake3(value).digest(length=_BYTES)


def _mixed(words: NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each word's bits spread over all of its own: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
