"""Whole documents as samples of a token dataset."""

from dataclasses import dataclass

import numpy as np

from pipelines.streaming.arrays import Arrays, Ints
from pipelines.streaming.gather.buffers import Buffers
from pipelines.streaming.gather.fields import Field, Samples, bounds_of
from pipelines.streaming.gather.views import Bytes, end_to_end, views_of
from pipelines.streaming.meter import Meter
from storage.shards import Shard


@dataclass(frozen=True)
class WholeDocuments(Field):
    """A token stream: sample i is document i, cut to `seq_len` + 1 tokens. One that isn't cut is ended by a
    `separator`, where the data has one (it begins each document, so in sequences it ends the one before).

    Gives `tokens` [n, width + 1] and `lengths`, int32 [n], the tokens of each sample; what follows them is padding.
    width + 1 is the longest sample's; width is rounded up to a multiple of `multiple`, to `seq_len` at most, so that
    there are few shapes.
    """

    seq_len: int
    multiple: int
    separator: int | None
    expected: float = 0.0  # tokens of a document, on average

    facts = 2  # addresses of the tokens and of the offsets
    varies = by_batch = True

    @property
    def nbytes(self) -> int:
        return 4 + round(min(self.expected, self.seq_len) + 1) * self.stored.nbytes

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, "lengths")

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        tokens = shard.column(self.name)
        self._check(shard, shard.rows, samples)
        return tokens.ctypes.data, shard.offsets.ctypes.data

    def locate(self, samples: Samples, facts: Ints) -> tuple[Ints, Ints]:
        """Addresses of the documents and their tokens, uncut, int64 [n] each."""
        tokens, offsets = facts
        begin, lengths = bounds_of(samples, offsets)
        return tokens[samples.shard] + begin * self.stored.nbytes, lengths

    def lengths(self, place: tuple[Ints, Ints]) -> Ints:
        return np.minimum(place[1] + self._ends, self.seq_len + 1)

    @property
    def _ends(self) -> int:
        """Tokens that end a document."""
        return 0 if self.separator is None else 1

    def gather(self, samples: Samples, place: tuple[Ints, Ints], part: slice, buffers: Buffers, meter: Meter) -> Arrays:
        addresses, stored = place[0][part], place[1][part]
        lengths = np.minimum(stored + self._ends, self.seq_len + 1)
        rows = len(lengths)
        longest = max(1, int(lengths.max(initial=0)) - 1)
        width = min(-(-longest // self.multiple) * self.multiple, self.seq_len)
        out = self._padded(addresses, np.minimum(stored, self.seq_len + 1), width + 1)
        meter.count(
            positions=rows * width,
            padding=rows * width - int(np.maximum(lengths - 1, 0).sum()),
            cut=int((stored + self._ends - lengths).sum()),
        )
        counts = buffers.empty((rows,), np.int32)
        counts[:] = lengths
        return {self.name: buffers.hold(out).view(self.stored.dtype).reshape(rows, width + 1), "lengths": counts}

    def _padded(self, addresses: Ints, tokens: Ints, width: int) -> Bytes:
        """Each row of so many tokens, and after it separators up to `width`."""
        padding = np.full(width, self.separator or 0, self.stored.dtype)
        size = self.stored.nbytes
        starts, lengths = np.empty((len(tokens), 2), np.int64), np.empty((len(tokens), 2), np.int64)
        starts[:, 0], starts[:, 1] = addresses, padding.ctypes.data
        lengths[:, 0], lengths[:, 1] = tokens * size, (width - tokens) * size
        return end_to_end(views_of(starts.reshape(-1), lengths.reshape(-1)))[0]
