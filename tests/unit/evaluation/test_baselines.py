"""Baselines against cases worked out by hand."""

import lzma
import zlib
from math import log, log2
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.baselines import (
    compressed_bits,
    counts_of_streams,
    majority,
    table_bits,
    xz_9e,
    zlib_9,
)


def test_bigram_by_hand() -> None:
    # Train: 0 1 0 1 0 2 and 1 2; pairs 01 01 10 10 02 12. Three tokens, 0.5 added to each count.
    train = counts_of_streams([np.array([0, 1, 0, 1, 0, 2], np.uint16), np.array([1, 2], np.uint16)], 3)
    assert train.tolist() == [[0, 2, 1], [2, 0, 1], [0, 0, 0]]
    held_out = counts_of_streams([np.array([0, 1, 2, 0], np.uint16)], 3)
    expected = -log2(2.5 / 4.5) - log2(1.5 / 4.5) - log2(1 / 3)  # 0→1, 1→2, 2→0 (never seen: uniform)
    assert table_bits(train, held_out, smoothing=0.5) == pytest.approx(expected, rel=1e-12)


def test_pairs_do_not_cross_streams() -> None:
    assert counts_of_streams([np.array([5], np.uint16), np.array([6], np.uint16)], 7).sum() == 0


def test_a_bigrams_probabilities_sum_to_one() -> None:
    train = counts_of_streams([np.random.default_rng(0).integers(0, 5, 200).astype(np.uint16)], 5)
    total = 0.0
    for follower in range(5):
        pair = np.zeros((5, 5), np.int64)
        pair[3, follower] = 1
        total += 2 ** -table_bits(train, pair)
    assert total == pytest.approx(1)


def test_compressors_are_the_ones_named() -> None:
    texts = [Path(__file__).read_bytes(), b"x" * 1000, np.random.default_rng(0).bytes(3000)]
    for text in texts:
        assert len(zlib_9(text)) == len(zlib.compress(text, 9))
        assert lzma.decompress(xz_9e(text)) == text
        assert len(xz_9e(text)) == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    bits = compressed_bits(zlib_9, texts)
    size = sum(map(len, texts))
    assert bits["bits_per_byte"] == 8 * len(zlib.compress(b"".join(texts), 9)) / size
    assert bits["bits_per_byte_by_file"] == 8 * sum(len(zlib.compress(text, 9)) for text in texts) / size


def test_majority_by_hand() -> None:
    block = majority(np.array([6, 1]), np.array([1, 3]))  # answers class 0; frequencies 7/9 and 2/9
    assert block["accuracy"] == 0.25
    assert block["loss"] == pytest.approx(-(log(7 / 9) + 3 * log(2 / 9)) / 4)
