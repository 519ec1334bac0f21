"""Whole documents into packs of so many tokens, best-fit-decreasing (Ding et al. 2024, arXiv:2404.10830).

A document longer than a pack fills as many as it can; its rest is packed as a short document is: the longest first,
each into the pack with the least room that holds it, else into a new one. So no document that fits is cut, and a longer
one is cut as few times as can be.

Unlike there, a long document stays in one stretch of tokens, so that its pieces follow each other: its rest is its end,
first in a pack, or its beginning, last in a pack. So a pack holds at most two rests. Packs are the sequences of a token
stream in which documents have another order, and there are gaps between some of them.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
FIRST, BETWEEN, LAST = 0, 1, 2  # places in a bin


@dataclass(frozen=True)
class Packs:
    """`order` [n]: the documents as they lie; `starts` [n]: the token at which each of those begins; `count` packs."""

    order: Ints
    starts: Ints
    count: int


def best_fit(lengths: Ints, size: int) -> Packs:
    """Lay documents of `lengths` > 0 out in packs of `size` tokens, the same each time. O(n log n).

    Packs come in the order of the first of their documents, and inside a pack whole documents do: so an order that was
    drawn at random stays one.
    """
    row = np.arange(len(lengths))
    bins, place, room = _choose(lengths, size)
    first = np.full(len(room), len(lengths))  # document of each bin
    np.minimum.at(first, bins, row)
    rank = np.argsort(np.argsort(first))  # of each bin
    order = np.lexsort((row, place, rank[bins]))
    gaps = np.zeros(len(lengths) + 1, np.int64)  # before each document as they lie, and at the end
    ends = np.append(np.flatnonzero(np.diff(bins[order])), len(order) - 1)  # the last document of each bin
    # Room lies at the end of a bin; but what begins there must end with a pack, so room lies before it.
    gaps[ends + (place[order][ends] != LAST)] += room[bins[order][ends]]
    laid = np.cumsum(np.append(0, lengths[order])) + np.cumsum(gaps)
    assert laid[-1] % size == 0
    return Packs(order, laid[:-1], int(laid[-1]) // size)


def _choose(lengths: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Of each document its bin, and its place in that; and the room that is left in each bin.

    A bin is a pack that is shared, and the full packs of its long documents.
    """
    rest = np.where(lengths >= size, lengths % size, 0)
    sizes = np.where(lengths >= size, rest, lengths)
    bins, place = np.arange(len(lengths)), np.full(len(lengths), BETWEEN)
    whole = np.flatnonzero(sizes == 0)  # they fill packs: a bin for each
    bins[whole] = np.arange(len(whole))
    room = [0] * len(whole)
    free, full = _Rooms(), _Rooms()  # bins that hold less than two rests, and the others
    rests: dict[int, int] = {}  # bin → how many
    todo = np.argsort(-sizes, kind="stable")[: len(lengths) - len(whole)]
    for document, needed, is_rest in zip(todo.tolist(), sizes[todo].tolist(), (rest[todo] > 0).tolist(), strict=True):
        found, other = free.least(needed), None if is_rest else full.least(needed)
        if found is None and other is None:
            index, left = len(room), size - needed
            room.append(left)
        else:
            rooms, found = (free, found) if other is None or (found is not None and found <= other) else (full, other)
            assert found is not None
            index, left = rooms.take(found), found - needed
            room[index] = left
        if is_rest:
            place[document] = LAST if index in rests else FIRST
            rests[index] = rests.get(index, 0) + 1
        bins[document] = index
        if left:
            (full if rests.get(index) == 2 else free).put(left, index)
    return bins, place, np.array(room, np.int64)


@dataclass
class _Rooms:
    """Bins by the room that they have."""

    rooms: list[int] = field(default_factory=list)
    bins: dict[int, list[int]] = field(default_factory=dict)

    def least(self, needed: int) -> int | None:
        """The least room that is enough."""
        at = bisect_left(self.rooms, needed)
        return self.rooms[at] if at < len(self.rooms) else None

    def take(self, room: int) -> int:
        """A bin that has it."""
        bins = self.bins[room]
        index = bins.pop()
        if not bins:
            del self.bins[room], self.rooms[bisect_left(self.rooms, room)]
        return index

    def put(self, room: int, index: int) -> None:
        if room not in self.bins:
            self.bins[room] = []
            insort(self.rooms, room)
        self.bins[room].append(index)
