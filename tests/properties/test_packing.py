"""Best-fit packing: every token once, nothing cut that fits, the same each time."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.encoders.encode import SEPARATOR, encode_documents
from pipelines.ingest.encoders.packing import best_fit
from storage.shards import Shard

TEXTS = st.lists(st.binary(max_size=40), min_size=1, max_size=30)
SIZES = st.integers(2, 24)


@given(texts=TEXTS, size=SIZES)
def test_packs_hold_every_document_once_and_cut_none_that_fits(texts: list[bytes], size: int) -> None:
    ids = [f"d{i}" for i in range(len(texts))]
    encoded = encode_documents([memoryview(text) for text in texts], ids, size)
    shard = Shard.open(encoded.data)
    tokens, offsets, names = shard.tokens, shard.offsets, shard.ids.to_pylist()
    assert (encoded.rows, encoded.tokens) == (len(texts), len(tokens))
    assert len(tokens) % size == 1  # whole packs, and the last one's last target
    assert sorted(names) == sorted(ids)
    for name, (start, stop) in zip(names, pairwise(offsets), strict=True):
        text = texts[int(name[1:])]
        document, fill = np.split(tokens[start:stop], [len(text) + 1])
        assert document[0] == SEPARATOR
        assert bytes(document[1:].astype(np.uint8)) == text
        assert (fill == SEPARATOR).all()
        assert len(fill) <= size, "a pack of nothing"
        pieces = (start + len(text)) // size - start // size + 1
        assert pieces == -(-(len(text) + 1) // size)
    assert encode_documents([memoryview(text) for text in texts], ids, size).data.equals(encoded.data)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60), size=st.integers(2, 32))
def test_packs_are_as_few_as_best_fit_promises(lengths: list[int], size: int) -> None:
    """No document could go into an earlier one's room: two packs of short documents never fit into one."""
    packs = best_fit(np.array(lengths), size)
    assert sorted(packs.order.tolist()) == list(range(len(lengths)))
    ends = packs.starts + np.array(lengths)[packs.order]
    assert (ends[:-1] <= packs.starts[1:]).all()
    assert ends[-1] <= packs.count * size
    owner = np.zeros(packs.count * size, np.int64)  # of each token: the length of its document, 0 for none
    for start, end in zip(packs.starts, ends, strict=True):
        owner[start:end] = end - start
    short = [pack for pack in owner.reshape(-1, size) if pack.max() < size]
    used = sorted(int((pack > 0).sum()) for pack in short)
    assert all(a + b > size for a, b in pairwise(used))


def test_a_layout_is_pinned() -> None:
    packs = best_fit(np.array([3, 20, 5, 8, 2, 6, 1]), 8)
    laid = dict(zip(packs.order.tolist(), packs.starts.tolist(), strict=True))
    assert packs.count == 6
    assert laid == {0: 0, 2: 3, 1: 8, 6: 28, 3: 32, 4: 40, 5: 42}


def test_two_rests_share_a_pack() -> None:
    packs = best_fit(np.array([10, 12, 1]), 8)
    assert packs.order.tolist() == [1, 2, 0]
    assert packs.starts.tolist() == [0, 12, 14], "the last one ends with its pack, and the room lies before it"
    assert packs.count == 3
