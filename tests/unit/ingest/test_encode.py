"""Curated rows to arrays: tokens, pixels, moments."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.encoders.encode import SEPARATOR, encode_documents, merge_moments, moments_of
from pipelines.ingest.shard import _cuts
from storage.shards import Shard


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_documents_become_separator_and_bytes(texts: list[bytes]) -> None:
    encoded = encode_documents([memoryview(text) for text in texts], [f"d{i}" for i in range(len(texts))])
    shard = Shard.open(encoded.data)
    expected = [token for text in texts for token in (SEPARATOR, *text)]
    assert shard.tokens.tolist() == expected
    assert encoded.tokens == len(expected)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 2**32))
def test_merged_moments_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(5, 3, (size, 4)) for size in sizes]
    whole = np.concatenate(parts)
    mean, std = merge_moments([moments_of(part) for part in parts])
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, whole.std(0), rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.floats(0.0001, 0.01))
def test_cuts_cover_every_row_once(sizes: list[int], target: float) -> None:
    cuts = list(_cuts(np.array(sizes), target))
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(len(sizes)))
    assert all(start < stop for start, stop in cuts)
