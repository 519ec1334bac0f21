"""What needs no model: tables of tokens, general compressors, the commonest class, the mean."""

import lzma
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.data import Array

SMOOTHING = 0.1  # added to every count of tokens
PAIRED = 1024  # largest vocabulary whose pairs are counted: 8 MiB a table
COMPRESSED_LIMIT = 64 << 20  # bytes; xz -9e takes about half a second a MiB
Counts = npt.NDArray[np.int64]


def no_tokens(vocabulary: int) -> Counts:
    """Counts of nothing: of pairs, int64 [vocabulary, vocabulary], or of single tokens, [vocabulary], where there would
    be too many pairs."""
    return np.zeros((vocabulary,) * (2 if vocabulary <= PAIRED else 1), np.int64)


def counts_of_streams(streams: Iterable[Array], vocabulary: int) -> Counts:
    """How often token b follows token a in the streams (row a, column b), or follows any, as `no_tokens`."""
    counts = no_tokens(vocabulary)
    for tokens in streams:
        counts += token_counts(tokens[:-1], tokens[1:], vocabulary)
    return counts


def token_counts(before: Array, after: Array, vocabulary: int) -> Counts:
    """How often token after[i] = b follows before[i] = a, or any, as `no_tokens`."""
    if vocabulary > PAIRED:
        return np.bincount(after, minlength=vocabulary)
    pairs = before.astype(np.int64) * vocabulary + after
    return np.bincount(pairs, minlength=vocabulary * vocabulary).reshape(vocabulary, vocabulary)


def table_name(counts: Counts) -> str:
    """The model that such counts make."""
    return "bigram" if counts.ndim == 2 else "unigram"


def table_bits(train: Counts, held_out: Counts, smoothing: float = SMOOTHING) -> float:
    """Bits that the model of `train` spends on the tokens of `held_out`: the bigram model p(b|a) = (n_ab + s) / (n_a +
    s·V), or of single tokens p(b) = (n_b + s) / (n + s·V)."""
    smoothed = train + smoothing
    probability = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return float(-(held_out * np.log2(probability)).sum())


def compressed_bits(compress: Callable[[bytes], bytes], documents: list[bytes]) -> dict[str, float]:
    """Bits per byte of a compressor: on the documents end to end, and on each by itself."""
    size = sum(map(len, documents))
    return {
        "bits_per_byte": 8 * len(compress(b"".join(documents))) / size,
        "bits_per_byte_by_file": 8 * sum(len(compress(document)) for document in documents) / size,
    }


def zlib_9(data: bytes) -> bytes:
    """zlib -9 (RFC 1950)."""
    return zlib.compress(data, 9)


def xz_9e(data: bytes) -> bytes:
    """xz -9e. The dictionary is no larger than the data needs, which gives as many bytes without allocating 64 MiB."""
    filters = [{
        "id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": max(4096, min(64 << 20, 1 << max(12, (len(data) - 1).bit_length()))),
    }]  # fmt: skip
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters)


def majority(train_counts: Counts, held_out_counts: Counts) -> dict[str, float]:
    """Accuracy and loss in bits' natural unit (nats) of answering with the train split's class frequencies."""
    frequency = (train_counts + 1) / (train_counts + 1).sum()
    total = held_out_counts.sum()
    return {
        "accuracy": float(held_out_counts[train_counts.argmax()] / total),
        "loss": float(-(held_out_counts * np.log(frequency)).sum() / total),
    }
