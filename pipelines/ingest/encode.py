"""Curated rows → the arrays of a shard, by kind: bytes as tokens, pixels, or feature vectors."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.ingest.readers import ID
from pipelines.params import Shard
from storage.errors import DataError
from storage.shards import encode_samples, encode_tokens

SEPARATOR = 256  # the token before each document; bytes are tokens 0 … 255
VOCABULARY = 257


@dataclass(frozen=True)
class Encoded:
    """A shard's bytes, its tokens (token datasets) and the moments of its inputs (fixed-width ones)."""

    data: pa.Buffer
    rows: int
    tokens: int
    moments: dict[str, Any] | None


def encode_documents(texts: Sequence[memoryview], ids: Sequence[str]) -> Encoded:
    """A token shard: for each document the separator and its UTF-8 bytes, uint16."""
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.empty(int(offsets[-1]), np.uint16)
    for text, start in zip(texts, offsets, strict=False):
        tokens[start] = SEPARATOR
        tokens[start + 1 : start + 1 + len(text)] = np.frombuffer(text, np.uint8)
    return Encoded(encode_tokens(tokens, offsets, list(ids)), len(texts), len(tokens), None)


def encode_inputs(inputs: NDArray[Any], labels: NDArray[Any], ids: Sequence[str]) -> Encoded:
    """A sample shard: inputs `x` [rows, …] and `label` [rows]."""
    data = encode_samples({"x": inputs, "label": labels}, list(ids))
    moments = moments_of(inputs)
    if labels.dtype.kind == "f":
        moments["target"] = moments_of(labels[:, None])
    return Encoded(data, len(inputs), 0, moments)


def pixels(table: pa.Table, params: Shard) -> NDArray[np.uint8]:
    """Decode a column of images to [rows, height, width, channels] uint8, resized where `shard.image_size` says so."""
    from PIL import Image

    size = params.image_size or [table["height"][0].as_py(), table["width"][0].as_py()]
    channels = 1 if params.image_mode == "L" else 3
    out = np.empty((table.num_rows, *size, channels), np.uint8)
    for row, blob in enumerate(table["image"]):
        with Image.open(io.BytesIO(blob.as_buffer())) as image:
            converted = image.convert(params.image_mode)
            if converted.size != (size[1], size[0]):
                if params.image_size is None:
                    raise DataError(
                        f"{table[ID][row]}: {converted.size[1]} x {converted.size[0]} pixels where the first image "
                        f"has {size[0]} x {size[1]}. Set shard.image_size to bring them to one size."
                    )
                converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            out[row] = np.asarray(converted).reshape(*size, channels)
    return out


def features(table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
    """The feature columns as [rows, features] float32."""
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)


def moments_of(inputs: NDArray[Any]) -> dict[str, Any]:
    """Shape of a sample; count, mean and sum of squared deviations over the last axis (features, channels), float64."""
    flat = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
    mean = flat.mean(axis=0)
    return {
        "shape": list(inputs.shape[1:]),
        "count": len(flat),
        "mean": mean.tolist(),
        "m2": np.square(flat - mean).sum(axis=0).tolist(),
    }


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
