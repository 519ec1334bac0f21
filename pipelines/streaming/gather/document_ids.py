"""Which document each token of a sequence is of, and where in it."""

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints

Int32s = npt.NDArray[np.int32]


def documents_of(offsets: Ints, first: Ints, length: int) -> tuple[Int32s, Int32s]:
    """(documents, positions), int32 [n, length] each, of the sequences of `length` tokens from `first` [n] on in a
    stream whose documents begin at `offsets` (the last is its end; what lies behind it is one more document)."""
    # Steps from token to token, summed up along the sequence: +1 a document begun, +1 a place, but back to 0 at a
    # begin.
    begun = np.searchsorted(offsets, first, side="right")  # documents that begin at or before the sequence
    until = np.searchsorted(offsets, first + length - 1, side="right")
    counts = until - begun
    sequence = np.repeat(np.arange(len(first)), counts)
    document = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts - begun, counts)
    at, size = offsets[document] - first[sequence], offsets[document] - offsets[document - 1]
    documents = np.zeros((len(first), length), np.int32)
    positions = np.ones((len(first), length), np.int32)
    positions[:, 0] = first - offsets[begun - 1]
    documents[sequence, at] = 1
    np.subtract.at(positions, (sequence, at), size.astype(np.int32))  # several where documents are empty
    return np.cumsum(documents, axis=1, dtype=np.int32), np.cumsum(positions, axis=1, dtype=np.int32)
