"""What a batch takes of a column: each kind of Field gathers its own way.

A kind says what it must know of an open shard (`inspect`: a few numbers, kept for all shards in one table, so that they
are looked up without a loop), where that puts each sample of a block (`locate`), how it makes arrays of some of them
(`gather`), a part of those (`part`), and samples that only pad (`padded`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.meter import Meter
from pipelines.streaming.order import Ints
from pipelines.streaming.rows import copy_cells, copy_rows, on_grid
from storage.errors import DataError
from storage.shards import Column, Shard

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
#: Makes an array of a shape and dtype, with any content.
New = Callable[[tuple[int, ...], npt.DTypeLike], Array]


@dataclass(frozen=True)
class Samples:
    """`row[i]` of shard `shard[i]`, int64 [n] each, and those shards, open."""

    shard: Ints
    row: Ints
    shards: Mapping[int, Shard]


@dataclass(frozen=True)
class Place:
    """Where rows lie: at addresses, or on cells of the grid at offset `grid` (see `rows.on_grid`); int64 [n]."""

    where: Ints
    grid: int | None = None

    def copy(self, part: slice, out: Array) -> None:
        """Fill `out`, [rows of `part`, …], with them."""
        if not out.size:
            return
        if self.grid is not None:
            copy_cells(self.grid, self.where[part], out)
        else:
            copy_rows(self.where[part], out)


@dataclass(frozen=True)
class Field(ABC):
    """What a batch takes of the column `name`, which is `stored` so in the shards."""

    name: str
    stored: Column

    facts = 1  # numbers that `inspect` returns

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
    def gather(self, samples: Samples, place: Any, part: slice, new: New, meter: Meter) -> Arrays:
        """A part of the samples as arrays by name, in that order; `place` is of all of them."""

    def id(self, shard: Shard, row: int) -> str:
        """The name of a sample."""
        return str(shard.ids[row])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays that `gather` makes."""
        return (self.name,)

    def part(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        """Samples `start` to `stop` of the field's arrays among `arrays`, without a copy of their bytes."""
        return {name: arrays[name][start:stop] for name in self.names}

    def padded(self, arrays: Arrays, count: int, new: New) -> Arrays:
        """The field's arrays among `arrays` lengthened to `count` samples with zeros."""
        longer = {}
        for name in self.names:
            values = arrays[name]
            longer[name] = new((count, *values.shape[1:]), values.dtype)
            longer[name][: len(values)] = values
            longer[name][len(values) :] = 0
        return longer

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

    facts = 3  # the column's address, and the same as offset and cell of a grid

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...] = ()) -> "Fixed":
        return cls(name, Column(np.dtype(dtype), shape))

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        self._check(shard, shard.rows, samples)
        address = shard.column(self.name).ctypes.data
        return address, *on_grid(address, self.nbytes)

    def locate(self, samples: Samples, facts: Ints) -> Place:
        address, grid, cell = facts
        grids = grid[samples.shard]
        if len(grids) and (grids == grids[0]).all():
            return Place(cell[samples.shard] + samples.row, int(grids[0]))
        return Place(address[samples.shard] + samples.row * self.nbytes)

    def gather(self, samples: Samples, place: Place, part: slice, new: New, meter: Meter) -> Arrays:
        out = new((len(samples.row[part]), *self.stored.shape), self.stored.dtype)
        place.copy(part, out)
        return {self.name: out}


@dataclass(frozen=True)
class Windows(Field):
    """A token stream: sample i is the window of `seq_len` + 1 tokens from token i · seq_len on. So its last token is
    the first of the next window: inputs and targets are the window without its last and without its first.

    Gives `tokens` [n, seq_len + 1]. With `documents`, which go on from window to window, also int32 [n, seq_len + 1]:
    `documents`, the number of the token's document within its window, from 0; and `positions`, its place in its
    document, from 0, wherever that began. So attention can be kept inside documents.
    """

    seq_len: int
    documents: bool = False

    @classmethod
    def of(cls, name: str, dtype: str, seq_len: int, documents: bool = False) -> "Windows":
        return cls(name, Column(np.dtype(dtype)), seq_len, documents)

    @property
    def stride(self) -> int:
        """Bytes between the beginnings of two windows."""
        return self.seq_len * self.stored.nbytes

    @property
    def nbytes(self) -> int:
        return (self.seq_len + 1) * (self.stored.nbytes + 8 * self.documents)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, "documents", "positions") if self.documents else (self.name,)

    def inspect(self, shard: Shard, samples: int) -> tuple[int, ...]:
        tokens = shard.column(self.name)
        self._check(shard, max(0, len(tokens) - 1) // self.seq_len, samples)
        return (tokens.ctypes.data,)

    def id(self, shard: Shard, row: int) -> str:
        """The document that the window begins in, and the offset."""
        token = row * self.seq_len
        document = int(np.searchsorted(shard.offsets, token, side="right")) - 1
        return f"{shard.ids[document]}+{token - int(shard.offsets[document])}"

    def locate(self, samples: Samples, facts: Ints) -> Place:
        return Place(facts[0][samples.shard] + samples.row * self.stride)

    def gather(self, samples: Samples, place: Place, part: slice, new: New, meter: Meter) -> Arrays:
        shard, row = samples.shard[part], samples.row[part]
        shape = (len(shard), self.seq_len + 1)
        out = new(shape, self.stored.dtype)
        place.copy(part, out)
        if not self.documents:
            return {self.name: out}
        documents, positions = new(shape, np.int32), new(shape, np.int32)
        for index in np.unique(shard).tolist():
            windows = np.flatnonzero(shard == index)
            first = row[windows] * self.seq_len
            documents[windows], positions[windows] = _bounds(samples.shards[index].offsets, first, self.seq_len + 1)
        return {self.name: out, "documents": documents, "positions": positions}


def _bounds(offsets: Ints, first: Ints, length: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(documents, positions), int32 [n, length] each, of the windows of `length` tokens from `first` [n] on in a stream
    whose documents begin at `offsets` (the last is its end)."""
    # Steps from token to token, summed up along the window: +1 a document begun, +1 a place, but back to 0 at a begin.
    begun = np.searchsorted(offsets, first, side="right")  # documents that begin at or before the window
    until = np.searchsorted(offsets, first + length - 1, side="right")
    counts = until - begun
    window = np.repeat(np.arange(len(first)), counts)
    document = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts - begun, counts)
    at, size = offsets[document] - first[window], offsets[document] - offsets[document - 1]
    documents = np.zeros((len(first), length), np.int32)
    positions = np.ones((len(first), length), np.int32)
    positions[:, 0] = first - offsets[begun - 1]
    documents[window, at] = 1
    np.subtract.at(positions, (window, at), size.astype(np.int32))  # several where documents are empty
    return np.cumsum(documents, axis=1, dtype=np.int32), np.cumsum(positions, axis=1, dtype=np.int32)
