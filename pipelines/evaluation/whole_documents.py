"""Held-out documents as a model that learns from whole documents sees them: from their beginning, cut to its length."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from pipelines.evaluation.data import Array
from pipelines.models.tasks import IGNORED
from storage.shards import Shard


def cut_documents(shard: Shard, seq_len: int, separator: int | None) -> list[Array]:
    """The shard's documents, each with the separator before it and, unless cut, the one that ends it: up to `seq_len` +
    1 tokens. Without a separator, as they are."""
    documents = [shard.tokens[start : min(end, start + seq_len + 1)] for start, end in pairwise(shard.offsets.tolist())]
    if separator is None:
        return documents
    return [
        document if len(document) > seq_len else np.append(document, np.array(separator, document.dtype))
        for document in documents
    ]


def padded_batches(documents: Sequence[Array], batch: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets, int64 [≤ batch, longest]: every token but each document's first is a target once, the rest is
    IGNORED. Documents of like length come together."""
    rising = sorted(documents, key=len)
    for first in range(0, len(rising), batch):
        part = rising[first : first + batch]
        width = max(1, len(part[-1]) - 1)
        inputs, targets = np.zeros((len(part), width), np.int64), np.full((len(part), width), IGNORED)
        for row, document in enumerate(part):
            inputs[row, : len(document) - 1], targets[row, : len(document) - 1] = document[:-1], document[1:]
        yield inputs, targets
