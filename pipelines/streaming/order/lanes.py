"""Lanes of shuffled rows: which sample is where in them, and which shards a stretch of them needs.

A lane's windows are each permuted on their own. That is arithmetic on the position, so any place of any epoch costs the
same to reach.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.layout import EpochLayout, Layout
from pipelines.streaming.order.permutation import permute, spread
from storage.errors import ParamsError

DEFAULT_LANES = 16
DEFAULT_WINDOW = 65_536
LARGEST_WINDOW = 1 << 30

_WINDOWS_A_LANE = 16  # how many a lane must have before there is another
_CHUNK = 8192  # samples planned at a time, so that the scratch arrays stay in the cache


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """How the samples of an epoch are put in order (docs/order.md)."""

    shuffle: bool = True
    """False: rows come as stored."""
    lanes: int | None = None
    """Disjoint stripes of an epoch that are read side by side; they must divide the batch. None chooses."""
    window: int = DEFAULT_WINDOW
    """Rows of a lane within which they are shuffled."""
    first_window: int | None = None
    """Rows of a lane's first window, at most; the next ones double up to `window`. None: about a shard's."""
    keep_lanes: bool = False
    """Keep a shard on its lane in all epochs, so that the caches of many nodes stay warm."""


def choose_lanes(batch: int, rows: int, window: int = DEFAULT_WINDOW, limit: int = DEFAULT_LANES) -> int:
    """The largest divisor of `batch` that is at most `limit` and leaves every lane 16 windows of rows.

    One lane shuffles best, needs the fewest shards for a first batch, and has the smallest region of memory in use, so
    only large data is read in several places at once.
    """
    if not 1 <= window <= LARGEST_WINDOW:
        raise ParamsError(f"stream.window={window}: must be from 1 to {LARGEST_WINDOW}.")
    most = min(limit, max(1, rows // (window * _WINDOWS_A_LANE)), batch)
    return _divisor(batch, most)


def _divisor(batch: int, most: int) -> int:
    """The largest divisor of `batch` that is at most `most`, 1 at least."""
    return next((lanes for lanes in range(min(most, batch), 1, -1) if batch % lanes == 0), 1)


class Lanes:
    """The rows of `shard_rows` (int64 [S], each ≥ 0) in lanes, of which every `batch` samples take as many from each.
    There are `count` lanes."""

    def __init__(self, shard_rows: npt.ArrayLike, *, batch: int, seed: int, ordering: Ordering) -> None:
        lanes, window, shuffle = ordering.lanes, ordering.window, ordering.shuffle
        self.shard_rows: Ints = np.asarray(shard_rows, dtype=np.int64).reshape(-1)
        fewest = int(self.shard_rows.min(initial=1))
        if fewest < 0:
            raise ValueError(f"shard_rows: shard {int(self.shard_rows.argmin())} has a negative number of rows")
        self.rows = int(self.shard_rows.sum())
        chosen = choose_lanes(batch, self.rows, window)
        if lanes is not None and (lanes < 1 or batch % lanes):
            raise ParamsError(
                f"stream.lanes={lanes} does not divide stream.batch_size={batch}, so that a batch cannot take as "
                f"much from each lane. Set stream.lanes to {_divisor(batch, lanes)}, or leave it out."
            )
        self.count = (lanes or chosen) if shuffle else 1
        self.window, self.keep_lanes, self.shuffle = window, ordering.keep_lanes and shuffle, shuffle
        filled = max(1, len(self.shard_rows) if fewest else int(np.count_nonzero(self.shard_rows)))
        first = ordering.first_window
        start = max(batch // self.count, -(-self.rows // filled)) if first is None else max(1, first)
        self.first_window = min(window, start)
        self.layout = Layout(
            self.shard_rows, self.rows, self.count, seed, window, self.first_window, self.keep_lanes, shuffle
        )

    def settings(self) -> dict[str, Any]:
        """What the order of the rows depends on besides the data and the seed."""
        return {
            "stream.lanes": self.count,
            "stream.window": self.window,
            "stream.keep_lanes": self.keep_lanes,
            "first window": self.first_window,
            "shuffle": self.shuffle,
        }

    # -- samples -------------------------------------------------------------------------------------------------

    def locate(self, epoch: int, lane: Ints, position: Ints) -> tuple[Ints, Ints]:
        """(shard, row) of the samples at `position` in `lane`, all int64 [n]. Costs some 40 ns a sample."""
        view = self.layout.epoch(epoch)
        shard, row = np.empty_like(position), np.empty_like(position)
        start = 0
        while start < len(position):
            part = slice(start, self._chunk_end(view, position, start))
            virtual = self._shuffled(view, lane[part], position[part]) if self.shuffle else position[part]
            view.find(virtual, shard[part], row[part])
            start = part.stop
        return shard, row

    def samples(self, epoch: int, number: Ints) -> tuple[Ints, Ints]:
        """(shard, row) of samples by their number in the epoch, in [0, rows), where the lanes take turns."""
        position, lane = np.divmod(number, self.count)
        left = np.flatnonzero(position == self.rows // self.count)  # which not all lanes have
        if left.size:
            lane[left], position[left] = self.rest(self.rows // self.count, lane[left])
        return self.locate(epoch, lane, position)

    def rest(self, position: int, sample: Ints) -> tuple[Ints, Ints]:
        """(lane, position in it) of samples of what is left from `position` on in all lanes, lane by lane."""
        left = self.layout.lane_rows - position
        ends = np.cumsum(left)
        lane = np.searchsorted(ends, sample, side="right")
        return lane, position - (ends - left)[lane] + sample

    def _chunk_end(self, view: EpochLayout, position: Ints, start: int) -> int:
        """Where to end what is planned together: in one lane, where positions rise, preferably with the window."""
        stop = min(start + _CHUNK, len(position))
        if self.count == 1:
            inside = int(np.searchsorted(position[start:stop], view.windows.find(int(position[start]))[2]))
            return start + inside if inside > _CHUNK // 8 else stop
        return stop

    def _shuffled(self, view: EpochLayout, lane: Ints, position: Ints) -> Ints:
        """Virtual rows, int64 [n]: each position permuted inside its window."""
        windows, lane_rows = view.windows, self.layout.lane_rows
        index, first, end = windows.find(int(position.min()))
        if position.max() < end:  # mostly all are of one window, and what it fixes is [1] instead of [n]
            start, size, room = np.array([first]), windows.rows(index, lane), np.array([end - first])
            keys = spread(np.array([index], dtype=np.uint64), view.lane_keys)
            keys = keys if self.count == 1 else keys[lane]
        else:
            end = int(lane_rows.max())
            window, start, size, room = windows.find_all(position, lane)
            keys = spread(window.view(np.uint64), view.lane_keys[lane])
        halves = ((position - start).astype(np.uint32), size.astype(np.uint32), keys, room.astype(np.uint32))
        virtual: Ints = permute(*halves) + start
        if self.count > 1:
            virtual += (self.layout.starts + view.turns)[lane]
            if end + view.turns.max() > lane_rows.min():  # some may have passed the end of their lane
                np.subtract(virtual, lane_rows[lane], out=virtual, where=virtual >= self.layout.bounds[lane + 1])
        return virtual

    # -- shards --------------------------------------------------------------------------------------------------

    def needs(self, epoch: int, number: int) -> Iterator[tuple[int, Ints]]:
        """(number of a sample, shards that are needed from it on), for samples by their number as in `samples`."""
        seen, full = np.zeros(len(self.shard_rows), dtype=np.bool_), self.rows // self.count
        for at, shards in self.span(epoch, np.arange(self.count), number // self.count, full, seen):
            yield at * self.count, shards
        if full * self.count < self.rows:
            shards = unseen(self.samples(epoch, np.arange(full * self.count, self.rows))[0], seen)
            if shards.size:
                yield full * self.count, shards

    def span(
        self, epoch: int, lanes: Ints, position: int, end: int, seen: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[int, Ints]]:
        """(position, shards that are needed from there on) of `lanes`, in positions from `position` until before `end`;
        without those that are `seen`, bool [shards], which they are then. The next one costs microseconds."""
        view = self.layout.epoch(epoch)
        while position < end:
            index, start, _ = view.windows.find(position)
            stop = start + view.windows.rows(index, lanes)
            shards = unseen(self._between(view, lanes, start if self.shuffle else position, stop), seen)
            if shards.size:
                yield position, shards
            position = int(stop.min())

    def _between(self, view: EpochLayout, lanes: Ints, start: int, stop: Ints) -> Ints:
        """The shards of the positions from `start` to `stop` ([n] or [1]) of `lanes`, int64; some twice."""
        base, rows, turn = self.layout.starts[lanes], self.layout.lane_rows[lanes], view.turns[lanes]
        low, high = start + turn, stop + turn  # what passes the end of the lane goes on at its start
        lows = np.concatenate([np.minimum(low, rows), np.maximum(low - rows, 0)]) + np.tile(base, 2)
        highs = np.concatenate([np.minimum(high, rows), np.maximum(high - rows, 0)]) + np.tile(base, 2)
        parts = [view.shards[part] for part in view.pieces(lows[lows < highs], highs[lows < highs])]
        shards = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return shards[self.shard_rows[shards] > 0]

    def reads(self, epoch: int, share: npt.NDArray[np.float64]) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The shards that hold what is read in `epoch`, int64 [n], and how many rows of each, float64 [n], where of
        lane l the part share[l] is read, spread evenly over it; those lanes must lie side by side."""
        view, bounds, owned = self.layout.epoch(epoch), self.layout.bounds, np.flatnonzero(share)
        low, high = bounds[owned[:1]], bounds[owned[-1:] + 1]
        (part,) = view.pieces(low, high)
        edges = np.concatenate([low, np.minimum(view.ends[part], high)])
        read = np.concatenate([[0.0], np.cumsum(share * self.layout.lane_rows)])
        rows: npt.NDArray[np.float64] = np.diff(np.interp(edges, bounds, read))
        shards, rows = view.shards[part][rows > 0], rows[rows > 0]
        if self.keep_lanes:  # a shard between two lanes is in two pieces
            shards, piece = np.unique(shards, return_inverse=True)
            rows = np.bincount(piece, weights=rows, minlength=len(shards)).astype(np.float64)
        return shards, rows


def unseen(shards: Ints, seen: npt.NDArray[np.bool_]) -> Ints:
    """Those of `shards` that are not `seen` yet, once each, in their order; they are seen then."""
    new = shards[~seen[shards]]
    _, places = np.unique(new, return_index=True)
    new = new[np.sort(places)]
    seen[new] = True
    return new
