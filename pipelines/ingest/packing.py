"""Whole documents into packs of so many tokens, best-fit-decreasing (Ding et al. 2024, arXiv:2404.10830).

A document longer than a pack begins one and fills as many as it takes; the room that its last piece leaves is as good
as any. The others go, the longest first, each into the pack with the least room that holds it, else into a new one. So
no document that fits is cut, a longer one is cut as few times as can be, and each stays in one stretch of tokens: packs
are the windows of a token stream in which documents have another order, and gaps between some of them.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packs:
    """`order` [n]: the documents as they lie; `starts` [n]: the token at which each of those begins; `count` packs."""

    order: Ints
    starts: Ints
    count: int


def best_fit(lengths: npt.NDArray[np.integer[Any]], size: int) -> Packs:
    """Lay documents of `lengths` > 0 out in packs of `size` tokens, the same each time. O(n log n).

    Packs come in the order of the first of their documents, and inside a pack documents do (but one that began before):
    so an order that was drawn at random stays one.
    """
    total = len(lengths)
    row = np.arange(total)
    bins, room = _choose(lengths.astype(np.int64), size)
    used = np.bincount(bins, lengths, len(room)).astype(np.int64)
    packs = -(-used // size)  # of each bin: a long document's are one bin
    assert (packs * size - used == room).all()
    first = np.full(len(room), total)
    np.minimum.at(first, bins, row)
    rank = np.argsort(np.argsort(first))  # of each bin
    order = np.lexsort((row, lengths < size, rank[bins]))
    sizes = lengths[order].astype(np.int64)
    gaps = np.zeros(total, np.int64)  # before each document
    last = np.flatnonzero(np.diff(bins[order]))  # the last document of each bin but the last
    gaps[last + 1] = room[bins[order][last]]
    starts = np.cumsum(sizes) - sizes + np.cumsum(gaps)
    return Packs(order, starts, int(packs.sum()))


def _choose(lengths: Ints, size: int) -> tuple[Ints, Ints]:
    """The bin of each document, and the room that each bin keeps."""
    bins = np.empty(len(lengths), np.int64)
    long = np.flatnonzero(lengths >= size)
    bins[long] = np.arange(len(long))
    room: list[int] = (-lengths[long] % size).tolist()
    having: dict[int, list[int]] = {}  # room → bins that have it
    for index, left in enumerate(room):
        having.setdefault(left, []).append(index)
    having.pop(0, None)
    rooms = sorted(having)
    short = np.flatnonzero(lengths < size)
    short = short[np.argsort(-lengths[short], kind="stable")]
    for document, length in zip(short.tolist(), lengths[short].tolist(), strict=True):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            index, left = len(room), size - length
            room.append(left)
        else:
            found = rooms[at]
            index, left = having[found].pop(), found - length
            if not having[found]:
                del having[found], rooms[at]
            room[index] = left
        bins[document] = index
        if left:
            if left not in having:
                having[left] = []
                rooms.insert(bisect_left(rooms, left), left)
            having[left].append(index)
    return bins, np.array(room, np.int64)
