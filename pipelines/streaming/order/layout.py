"""How an epoch lays out the rows of all shards: end to end, in lanes, in another way each epoch.

The shards are permuted and their rows laid end to end: the virtual rows [0, N). They are cut into L equal lanes, and a
lane into windows. All of it is arithmetic with O(shards) memory.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.streaming.arrays import Ints
from pipelines.streaming.order.permutation import Words, in_halves, shuffled, spread
from pipelines.streaming.order.windows import Windows
from storage.digest import keyed_uint64

#: Raised whenever the same arguments would give another order; saved stream states carry it.
ORDER_VERSION = 3


@dataclass(frozen=True)
class EpochLayout:
    """What an epoch fixes: the pieces (shards, or parts of one that kept lanes divide) as they are read, where each
    lies among the virtual rows, the windows, a key."""

    shards: Ints  # [P], indices into shard_rows
    offsets: Ints  # [P], virtual row minus row in the shard
    ends: Ints  # [P]
    turns: Ints  # [L], rows from the start of a lane to the first shard that starts in it; reading starts there
    windows: Windows
    lane_keys: Words  # [L]

    def find(self, virtual: Ints, shard: Ints, row: Ints) -> None:
        """Write (shard, row) of virtual rows into `shard` and `row`, int64 [n] each."""
        low, high = np.searchsorted(self.ends, [virtual.min(), virtual.max()], side="right")
        near = slice(low, high + 1)
        place = np.searchsorted(self.ends[near], virtual, side="right")
        shard[:] = self.shards[near][place]
        np.subtract(virtual, self.offsets[near][place], out=row)

    def pieces(self, low: Ints, high: Ints) -> list[slice]:
        """The pieces that hold virtual rows of each stretch [low, high), int64 [n]."""
        firsts = np.searchsorted(self.ends, low, side="right")
        ends = np.searchsorted(self.ends, high, side="left") + 1
        return [slice(first, end) for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]


@dataclass(frozen=True)
class _Pieces:
    """With kept lanes: the shards, those cut that are on two lanes."""

    shards: Ints  # [P], indices into shard_rows
    firsts: Ints  # [P], the first row of each
    rows: Ints  # [P]
    counts: Ints  # [L], how many of them each lane has; they lie lane by lane


class Layout:
    """`shard_rows` (int64 [S]; `rows` in all) in `lanes` lanes, whose windows grow from about `first_window` rows up to
    `window`. With `keep_lanes` a shard stays on its lane in all epochs; without `shuffle` shards come as stored."""

    def __init__(
        self,
        shard_rows: Ints,
        rows: int,
        lanes: int,
        seed: int,
        window: int,
        first_window: int,
        keep_lanes: bool,
        shuffle: bool,
    ) -> None:
        self.shard_rows, self.rows, self.lanes, self.seed = shard_rows, rows, lanes, seed
        self.window, self.first_window, self.shuffle = window, first_window, shuffle
        self._count = np.array([len(shard_rows)])
        self.bounds = np.array([lane * self.rows // lanes for lane in range(lanes + 1)], dtype=np.int64)
        self.starts, self.lane_rows = self.bounds[:-1], np.diff(self.bounds)
        self._kept = self._kept_pieces() if keep_lanes else None
        self._latest: tuple[int, EpochLayout] | None = None

    def epoch(self, epoch: int) -> EpochLayout:
        """Of that epoch; some tens of milliseconds a million shards, unless it is the latest that was asked for."""
        latest = self._latest  # read once: another thread may replace it
        if latest is None or latest[0] != epoch:
            latest = self._latest = (epoch, self._lay(epoch))
        return latest[1]

    def _lay(self, epoch: int) -> EpochLayout:
        name = ("order", ORDER_VERSION, self.seed, epoch)
        key, kept = keyed_uint64(*name, "shards"), self._kept
        if kept is not None:
            place = shuffled(kept.counts, key)
            shards, rows = kept.shards[place], kept.rows
        else:
            place = shards = shuffled(self._count, key) if self.shuffle else np.arange(len(self.shard_rows))
            rows = self.shard_rows
        bounds = np.zeros(len(shards) + 1, dtype=np.int64)  # all in one array: new memory costs more than the sums
        starts, ends = bounds[:-1], bounds[1:]
        # Clipping is four times as fast as indexing.
        in_halves(len(shards), lambda part: np.take(rows, place[part], out=ends[part], mode="clip"))
        np.cumsum(ends, out=ends)
        turns = np.zeros(self.lanes, dtype=np.int64)
        if self.rows and kept is None:  # kept pieces begin where lanes do
            whole = np.searchsorted(starts, self.starts)
            turns = starts[np.minimum(whole, len(starts) - 1)] - self.starts
            turns[(turns < 0) | (turns >= self.lane_rows)] = 0
        offsets = starts if kept is None else starts - kept.firsts[place]
        # Other windows in each epoch, so that no two rows of a shard are parted, or together, in all of them.
        first = self.first_window - keyed_uint64(*name, "windows") % (self.first_window // 2 + 1)
        keys = spread(np.arange(self.lanes, dtype=np.uint64), np.uint64(keyed_uint64(*name, "rows")))
        return EpochLayout(shards, offsets, ends, turns, Windows(first, self.window, self.lane_rows), keys)

    def _kept_pieces(self) -> _Pieces:
        """The shards in an order of the seed alone, cut where lanes end."""
        shards = shuffled(self._count, keyed_uint64("order", ORDER_VERSION, self.seed, "kept"))
        ends = np.cumsum(self.shard_rows[shards])
        cuts = np.sort(np.concatenate([self.bounds, ends]))
        rows = np.diff(cuts)
        starts, rows = cuts[:-1][rows > 0], rows[rows > 0]
        place = np.searchsorted(ends, starts, side="right")
        firsts = starts - (ends[place] - self.shard_rows[shards[place]])
        return _Pieces(shards[place], firsts, rows, np.diff(np.searchsorted(starts, self.bounds)))
