"""What a batch takes of a column: each kind of Field gathers its own way.

A kind says what it must know of an open shard (`inspect`: a few numbers, kept for all shards in one table, so that they
are looked up without a loop), where that puts each sample of a block (`locate`), how it makes arrays of some of them
(`gather`), and samples that only pad (`padded`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.streaming.arrays import Array, Arrays, Ints
from pipelines.streaming.gather.buffers import Buffers
from pipelines.streaming.gather.decode import Decoder
from pipelines.streaming.gather.document_ids import documents_of
from pipelines.streaming.gather.ragged import Ragged
from pipelines.streaming.gather.rows import Rows
from pipelines.streaming.gather.views import LONGEST, end_to_end, views_of
from pipelines.streaming.meter import Meter
from storage.errors import DataError
from storage.shards import Column, Shard


@dataclass(frozen=True)
class Samples:
    """`row[i]` of shard `shard[i]`, int64 [n] each, and those shards, open."""

    shard: Ints
    row: Ints
    shards: Mapping[int, Shard]


def bounds_of(samples: Samples, offsets: Ints) -> tuple[Ints, Ints]:
    """Where each sample begins in its shard, and its length, int64 [n] each; `offsets` [shards] are the addresses of
    the shards' 64-bit offsets."""
    bounds = np.empty((len(samples.row), 2), np.int64)
    Rows.at(offsets[samples.shard] + samples.row * 8, 16).copy(slice(None), bounds)
    return bounds[:, 0], bounds[:, 1] - bounds[:, 0]


@dataclass(frozen=True)
class Field(ABC):
    """What a batch takes of the column `name`, which is `stored` so in the shards."""

    name: str
    stored: Column

    facts = 1  # numbers that `inspect` returns
    varies = False  # whether samples differ in length
    serial = False  # whether one thread at a time may gather
    by_batch = False  # whether the arrays of several batches cannot be parts of the same ones

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of a sample in the batch, about."""

    @abstractmethod
    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        """What `gather` must know of a shard with so many samples. Raises DataError unless the shard's column is as
        the manifest says: everything that follows relies on its size."""

    @abstractmethod
    def locate(self, samples: Samples, facts: Ints) -> Any:
        """Where the samples are, for `gather`; `facts` int64 [k, shards] is what `inspect` said of open shards."""

    @abstractmethod
    def gather(self, samples: Samples, place: Any, part: slice, buffers: Buffers, meter: Meter) -> Arrays:
        """A part of the samples as arrays by name, in that order; `place` is of all of them."""

    def lengths(self, place: Any) -> Ints:
        """Of the samples that `locate` has placed, int64 [n], in bytes or tokens, where the field `varies`."""
        raise NotImplementedError(f"{type(self).__name__}: its samples have one length")

    def id(self, shard: Shard, row: int) -> str:
        """The name of a sample."""
        return str(shard.ids[row])

    def reserve(self, count: int, buffers: Buffers) -> Array | None:
        """Memory such as `gather` will ask for to hold `count` samples, where that is known beforehand."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays that `gather` makes."""
        return (self.name,)

    def padded(self, arrays: Arrays, count: int, buffers: Buffers) -> Arrays:
        """The field's arrays among `arrays` lengthened to `count` samples with zeros."""
        longer = {}
        for name in self.names:
            values = arrays[name]
            longer[name] = buffers.empty((count, *values.shape[1:]), values.dtype)
            longer[name][: len(values)] = values
            longer[name][len(values) :] = 0
        return longer

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End threads, if it has some. They are started again when needed."""

    def _check(self, shard: Shard, found: int, samples: int) -> None:
        column = shard.columns.get(self.name)
        if column is not None and column != self.stored:
            raise DataError(
                f"{shard.what}: column {self.name!r} has {_describe(column)} a row, the manifest says "
                f"{_describe(self.stored)}. Make the shards again: `dvc repro --force shard`."
            )
        if found != samples:
            raise DataError(
                f"{shard.what}: {found} samples in column {self.name!r}, but the manifest says "
                f"{samples}. Make the shards again: `dvc repro --force shard`."
            )


def _describe(column: Column) -> str:
    codec = "" if column.codec == "raw" else f"{column.codec} of "
    return f"{codec}{column.dtype} {list(column.shape)}"


@dataclass(frozen=True)
class Fixed(Field):
    """A column of fixed width: row i of the shard is sample i. Gives `name` [n, *shape]."""

    facts = 3  # the column's address, and the same as the origin of a grid of its rows' size and a cell on it

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...] = ()) -> "Fixed":
        return cls(name, Column(np.dtype(dtype), shape))

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        self._check(shard, shard.rows, samples)
        address = shard.column(self.name).ctypes.data
        cell, origin = divmod(address, max(1, self.nbytes))
        return address, origin, cell

    def locate(self, samples: Samples, facts: Ints) -> Rows:
        address, origin, cell = facts
        origins = origin[samples.shard]
        if len(origins) and self.nbytes and (origins == origins[0]).all():
            return Rows.on_grid(cell[samples.shard] + samples.row, int(origins[0]), self.nbytes)
        return Rows.at(address[samples.shard] + samples.row * self.nbytes, self.nbytes)

    def reserve(self, count: int, buffers: Buffers) -> Array | None:
        return buffers.empty((count, *self.stored.shape), self.stored.dtype)

    def gather(self, samples: Samples, place: Rows, part: slice, buffers: Buffers, meter: Meter) -> Arrays:
        return {self.name: place.gather(part, self.stored.shape, self.stored.dtype, buffers)}


@dataclass(frozen=True)
class Tokens(Field):
    """A token stream: sample i is the sequence of `seq_len` + 1 tokens from token i · seq_len on. So its last token is
    the first of the next sequence: inputs and targets are the sequence without its last and without its first.

    Gives `tokens` [n, seq_len + 1]. With `document_mask`, where documents go on from sequence to sequence, also int32
    [n, seq_len + 1]: `documents`, the number of the token's document within its sequence, from 0; and `positions`, its
    place in its document, from 0, wherever that began. So attention can be kept inside documents.
    """

    seq_len: int
    document_mask: bool = False

    @classmethod
    def of(cls, name: str, dtype: str, seq_len: int, document_mask: bool = False) -> "Tokens":
        return cls(name, Column(np.dtype(dtype)), seq_len, document_mask)

    @property
    def stride(self) -> int:
        """Bytes between the beginnings of two sequences."""
        return self.seq_len * self.stored.nbytes

    @property
    def nbytes(self) -> int:
        return (self.seq_len + 1) * (self.stored.nbytes + 8 * self.document_mask)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, "documents", "positions") if self.document_mask else (self.name,)

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        tokens = shard.column(self.name)
        self._check(shard, max(0, len(tokens) - 1) // self.seq_len, samples)
        return (tokens.ctypes.data,)

    def id(self, shard: Shard, row: int) -> str:
        """The document that the sequence begins in, and the offset."""
        token = row * self.seq_len
        document = int(np.searchsorted(shard.offsets, token, side="right")) - 1
        return f"{shard.ids[document]}+{token - int(shard.offsets[document])}"

    def locate(self, samples: Samples, facts: Ints) -> Rows:
        addresses = facts[0][samples.shard] + samples.row * self.stride
        return Rows.at(addresses, (self.seq_len + 1) * self.stored.nbytes)

    def gather(self, samples: Samples, place: Rows, part: slice, buffers: Buffers, meter: Meter) -> Arrays:
        out = place.gather(part, (self.seq_len + 1,), self.stored.dtype, buffers)
        if not self.document_mask:
            return {self.name: out}
        shard, row = samples.shard[part], samples.row[part]
        documents, positions = buffers.empty(out.shape, np.int32), buffers.empty(out.shape, np.int32)
        for index in np.unique(shard).tolist():
            sequences = np.flatnonzero(shard == index)
            first = row[sequences] * self.seq_len
            documents[sequences], positions[sequences] = documents_of(
                samples.shards[index].offsets, first, self.seq_len + 1
            )
        return {self.name: out, "documents": documents, "positions": positions}


@dataclass(frozen=True)
class Blobs(Field):
    """A column of variable width: row i of the shard is sample i. Gives `name`, Ragged of n rows."""

    expected: float = 0.0  # bytes of a row, on average

    facts = 2  # addresses of the values and of the offsets
    varies = True

    @property
    def nbytes(self) -> int:
        return 8 + round(self.expected)

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        self._check(shard, shard.rows, samples)
        values, offsets = shard.blobs(self.name)
        return values.ctypes.data, offsets.ctypes.data

    def locate(self, samples: Samples, facts: Ints) -> tuple[pa.Array, Ints]:
        """The rows, as views, and their lengths, int64 [n]. Raises DataError where one is too long for a batch."""
        values, offsets = facts
        begin, lengths = bounds_of(samples, offsets)
        if lengths.max(initial=0) > LONGEST:
            which = int(lengths.argmax())
            shard = samples.shards[int(samples.shard[which])]
            raise DataError(
                f"{shard.what}: {self.id(shard, int(samples.row[which]))}: {lengths[which]} bytes in column "
                f"{self.name!r}; at most {LONGEST} go into a batch. Cut the sample at the source, then run `dvc repro`."
            )
        return views_of(values[samples.shard] + begin, lengths), lengths

    def lengths(self, place: tuple[pa.Array, Ints]) -> Ints:
        return place[1]

    def gather(
        self, samples: Samples, place: tuple[pa.Array, Ints], part: slice, buffers: Buffers, meter: Meter
    ) -> Arrays:
        values, offsets = end_to_end(place[0][part])
        return {self.name: Ragged(buffers.hold(values), offsets)}

    def padded(self, arrays: Arrays, count: int, buffers: Buffers) -> Arrays:
        return {self.name: arrays[self.name].padded(count)}


@dataclass(frozen=True)
class Images(Field):
    """A column of encoded images, decoded. Gives `name` uint8 [n, *shape]."""

    decoder: Decoder

    serial = True  # the decoder has threads of its own

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        self._check(shard, shard.rows, samples)
        return (shard.blobs(self.name)[0].ctypes.data,)

    def locate(self, samples: Samples, facts: Ints) -> None:
        return None

    def gather(self, samples: Samples, place: None, part: slice, buffers: Buffers, meter: Meter) -> Arrays:
        shard, row = samples.shard[part].tolist(), samples.row[part].tolist()
        out = buffers.empty((len(row), *self.stored.shape), np.uint8)
        with meter.time("decode"):
            images = []
            for index, sample in zip(shard, row, strict=True):
                values, offsets = samples.shards[index].blobs(self.name)
                images.append(values.data[offsets[sample] : offsets[sample + 1]])

            def name(number: int) -> str:
                opened = samples.shards[shard[number]]
                return f"{opened.what}: {self.id(opened, row[number])}"

            self.decoder.into(images, out, name)
        return {self.name: out}

    def close(self) -> None:
        self.decoder.close()
