"""Curated rows → the arrays of a shard, by kind: bytes as tokens, pixels, image files, or feature vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipelines.ingest.curated import ID
from pipelines.ingest.encoders.packing import best_fit
from pipelines.params import Shard
from storage.errors import DataError
from storage.images import decode_image, stored_image
from storage.shards import Blobs, encode_samples, encode_tokens

SEPARATOR = 256  # the token before each document; bytes are tokens 0 … 255
VOCABULARY = 257

_DECODED = 64 << 20  # bytes of pixels at once
_COUNTED = 1 << 20  # values at once


@dataclass(frozen=True)
class Encoded:
    """A shard's bytes, its tokens (token datasets) and the moments of its inputs (fixed-width ones)."""

    data: pa.Buffer
    rows: int
    tokens: int
    moments: dict[str, Any] | None


def encode_documents(texts: Sequence[memoryview], ids: Sequence[str], pack_len: int | None = None) -> Encoded:
    """A token shard: for each document the separator and its UTF-8 bytes, uint16.

    With `pack_len` documents lie in packs of so many tokens: what is left of a pack is filled with separators, which
    belong to the document before them, and one more token ends the last pack's window.
    """
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    if pack_len is None:
        offsets = np.concatenate(([0], np.cumsum(lengths)))
    else:
        packs = best_fit(lengths, pack_len)
        texts, ids = [texts[i] for i in packs.order], [ids[i] for i in packs.order]
        offsets = np.append(packs.starts, packs.count * pack_len + 1)
    tokens = np.full(int(offsets[-1]), SEPARATOR, np.uint16)
    for text, start in zip(texts, offsets, strict=False):
        tokens[start + 1 : start + 1 + len(text)] = np.frombuffer(text, np.uint8)
    return Encoded(encode_tokens(tokens, offsets, list(ids)), len(texts), len(tokens), None)


def encode_inputs(inputs: NDArray[Any], labels: NDArray[Any], ids: Sequence[str]) -> Encoded:
    """A sample shard: inputs `x` [rows, …] and `label` [rows]."""
    data = encode_samples({"x": inputs, "label": labels}, list(ids))
    return Encoded(data, len(inputs), 0, _with_target(moments_of(inputs), labels))


def _with_target(moments: dict[str, Any], labels: NDArray[Any]) -> dict[str, Any]:
    return {**moments, "target": moments_of(labels[:, None])} if labels.dtype.kind == "f" else moments


def image_shape(table: pa.Table, params: Shard) -> tuple[int, int, int]:
    """[height, width, channels] that a column of images is decoded to. Raises DataError where sizes vary and
    `shard.image_size` doesn't say to which one they are brought."""
    channels = 1 if params.image_mode == "L" else 3
    if params.image_size:
        return params.image_size[0], params.image_size[1], channels
    sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
    height, width = sizes[0].tolist()
    other = np.flatnonzero((sizes != sizes[0]).any(axis=1))
    if len(other):
        row = int(other[0])
        raise DataError(
            f"{table[ID][row]}: {sizes[row, 0]} x {sizes[row, 1]} pixels where the first image has {height} x {width}. "
            "Set shard.image_size to bring them to one size."
        )
    return height, width, channels


def pixels(table: pa.Table, params: Shard) -> NDArray[np.uint8]:
    """Decode a column of images to [rows, height, width, channels] uint8, resized where `shard.image_size` says so."""
    out = np.empty((table.num_rows, *image_shape(table, params)), np.uint8)
    for row, image in enumerate(table["image"]):
        try:
            decode_image(image.as_buffer(), out[row])
        except DataError as error:
            raise DataError(f"{table[ID][row]}: {error}.") from error
    return out


def encode_images(table: pa.Table, labels: NDArray[Any], params: Shard) -> Encoded:
    """A sample shard: image files `x` and `label` [rows]. The moments are of the pixels that they are decoded to."""
    shape = image_shape(table, params)
    together = max(1, _DECODED // math.prod(shape))
    counts = np.zeros((shape[2], 256), np.int64)
    for start in range(0, table.num_rows, together):
        counts += _histograms(pixels(table.slice(start, together), params))
    files = [_stored(row, name, params) for row, name in zip(table["image"], table[ID], strict=True)]
    data = encode_samples({"x": Blobs.of(files, "image", shape), "label": labels}, table[ID].to_pylist())
    return Encoded(data, table.num_rows, 0, _with_target(_moments_of_counts(shape, counts), labels))


def _stored(image: Any, name: Any, params: Shard) -> Buffer:
    try:
        return stored_image(image.as_buffer(), params.image_mode)
    except DataError as error:
        raise DataError(f"{name}: {error}.") from error


def features(table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
    """The feature columns as [rows, features] float32."""
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)


def moments_of(inputs: NDArray[Any]) -> dict[str, Any]:
    """Shape of a sample; count, mean and sum of squared deviations over the last axis (features, channels), float64.

    Of uint8, they are exact up to the last rounding, however the inputs are shared out.
    """
    if inputs.dtype == np.uint8:
        return _moments_of_counts(inputs.shape[1:], _histograms(inputs))
    flat = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
    mean = flat.mean(axis=0)
    return {
        "shape": list(inputs.shape[1:]),
        "count": len(flat),
        "mean": mean.tolist(),
        "m2": np.square(flat - mean).sum(axis=0).tolist(),
    }


def _histograms(inputs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each value occurs in each channel (the last axis): int64 [channels, 256]."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    counts = np.zeros((flat.shape[1], 256), np.int64)
    for start in range(0, len(flat), _COUNTED):
        for channel, values in enumerate(flat[start : start + _COUNTED].T):
            counts[channel] += np.bincount(values, minlength=256)
    return counts


def _moments_of_counts(shape: tuple[int, ...], counts: NDArray[np.int64]) -> dict[str, Any]:
    values, total = np.arange(256), int(counts[0].sum())
    mean = counts @ values / total
    m2 = (counts * np.square(values - mean[:, None])).sum(axis=1)
    return {"shape": list(shape), "count": total, "mean": mean.tolist(), "m2": m2.tolist()}


def merge_moments(parts: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) over all parts, by pairwise merging (Chan, Golub and LeVeque, 1979)."""
    count, mean, m2 = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        n, part_mean = part["count"], np.array(part["mean"])
        delta = part_mean - mean
        total = count + n
        m2 = m2 + np.array(part["m2"]) + np.square(delta) * (count * n / total)
        mean = mean + delta * (n / total)
        count = total
    return mean.tolist(), np.sqrt(m2 / max(count, 1)).tolist()
