"""The order of an epoch: a pure function (seed, epoch, position) → (shard, row), with O(shards) memory.

An epoch permutes the shards and lays their rows end to end: the virtual rows [0, N). They are cut into L equal lanes,
and a lane into windows, each permuted on its own. Every global batch of B samples takes B/L samples from each lane. All
of it is arithmetic on the position, so any step of any epoch costs the same to reach, and nothing depends on how many
ranks share the work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.streaming.permutation import Words, permute, spread
from pipelines.streaming.windows import Windows
from storage.digest import keyed_uint64
from storage.errors import ParamsError

Ints = npt.NDArray[np.int64]

#: Raised whenever the same arguments would give another order; saved stream states carry it.
ORDER_VERSION = 2
DEFAULT_LANES = 16
DEFAULT_WINDOW = 65_536
LARGEST_WINDOW = 1 << 30

_WINDOWS_A_LANE = 16  # how many a lane must have before there is another
_CHUNK = 8192  # samples planned at a time, so that the scratch arrays stay in the cache
_HASHED = 1 << 15  # shards hashed at a time


def choose_lanes(batch: int, rows: int, window: int = DEFAULT_WINDOW, limit: int = DEFAULT_LANES) -> int:
    """The largest divisor of `batch` that is at most `limit` and leaves every lane 16 windows of rows.

    One lane shuffles best, needs the fewest shards for a first batch, and has the smallest region of memory in use, so
    only large data is read in several places at once.
    """
    most = min(limit, max(1, rows // (window * _WINDOWS_A_LANE)), batch)
    return next(lanes for lanes in range(most, 0, -1) if batch % lanes == 0)


@dataclass(frozen=True)
class _Pieces:
    """With kept lanes: the shards, those cut that are on two lanes."""

    shards: Ints  # [P], indices into shard_rows
    firsts: Ints  # [P], the first row of each
    rows: Ints  # [P]
    lanes: Ints  # [P]


@dataclass(frozen=True)
class _Epoch:
    """What an epoch fixes: the pieces as they are read, where each lies among the virtual rows, the windows, a key."""

    shards: Ints  # [P], indices into shard_rows
    offsets: Ints  # [P], virtual row minus row in the shard
    ends: Ints  # [P]
    turns: Ints  # [L], rows from the start of a lane to the first shard that starts in it; reading starts there
    windows: Windows
    lane_keys: Words  # [L]


class Order:
    """The order of the rows of `shard_rows` (int64 [S], each ≥ 0) in global batches of `batch` samples.

    `lanes` must divide `batch`; None chooses. `window` is in rows; the first window of a lane has at most
    `first_window` rows (None: about a shard's) and the next ones double up to `window`. With `keep_lanes` a shard stays
    on its lane in all epochs, so that the caches of many nodes stay warm. With `shuffle=False` rows come as stored.

    Every row comes exactly once an epoch; the last batch of an epoch is short when `batch` doesn't divide the rows.
    Costs some 40 ns a sample when planned in blocks, and some 15 ms a million shards once an epoch.
    """

    def __init__(
        self,
        shard_rows: npt.ArrayLike,
        *,
        batch: int,
        seed: int,
        lanes: int | None = None,
        window: int = DEFAULT_WINDOW,
        first_window: int | None = None,
        keep_lanes: bool = False,
        shuffle: bool = True,
    ) -> None:
        self.shard_rows: Ints = np.asarray(shard_rows, dtype=np.int64).reshape(-1)
        if batch < 1:
            raise ParamsError(f"stream.batch_size={batch}: must be at least 1.")
        if not 1 <= window <= LARGEST_WINDOW:
            raise ParamsError(f"stream.window={window}: must be from 1 to {LARGEST_WINDOW}.")
        if (self.shard_rows < 0).any():
            raise ValueError(f"shard_rows: shard {int(self.shard_rows.argmin())} has a negative number of rows")
        self.rows = int(self.shard_rows.sum())
        if lanes is not None and (lanes < 1 or batch % lanes):
            near = next(divisor for divisor in range(min(max(1, lanes), batch), 0, -1) if batch % divisor == 0)
            raise ParamsError(
                f"stream.lanes={lanes} does not divide stream.batch_size={batch}, so that a batch cannot take as "
                f"much from each lane. Set stream.lanes to {near}, or leave it out."
            )
        self.batch_size, self.seed, self.window, self.shuffle = batch, seed, window, shuffle
        self.lanes = (lanes or choose_lanes(batch, self.rows, window)) if shuffle else 1
        self.keep_lanes = keep_lanes and shuffle
        self.full_steps, self._rest = divmod(self.rows, batch)
        self.steps = self.full_steps + (self._rest > 0)
        self._per_lane = batch // self.lanes  # samples of a lane in a full batch
        filled = max(1, int(np.count_nonzero(self.shard_rows)))
        start = max(self._per_lane, -(-self.rows // filled)) if first_window is None else max(1, first_window)
        self.first_window = min(window, start)
        self._bounds = np.array([lane * self.rows // self.lanes for lane in range(self.lanes + 1)], dtype=np.int64)
        self._lane_starts, self._lane_rows = self._bounds[:-1], np.diff(self._bounds)
        rest = self._lane_rows - self.full_steps * self._per_lane  # what each lane gives to the short batch
        self._rest_ends = np.cumsum(rest)
        self._rest_firsts = self.full_steps * self._per_lane - (self._rest_ends - rest)
        self._pieces = self._kept_pieces() if self.keep_lanes else None
        self._latest: tuple[int, _Epoch] | None = None

    def settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data, as JSON values by the names that people know."""
        return {
            "order version": ORDER_VERSION,
            "seed": self.seed,
            "stream.batch_size": self.batch_size,
            "stream.lanes": self.lanes,
            "stream.window": self.window,
            "stream.keep_lanes": self.keep_lanes,
            "first window": self.first_window,
            "shuffle": self.shuffle,
        }

    # -- batches -------------------------------------------------------------------------------------------------

    def size(self, step: int) -> int:
        """Samples in the global batch at `step`: `batch`, or fewer in the last one of an epoch."""
        self._check(step, 1)
        return self.batch_size if step < self.full_steps else self._rest

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        """The part of a global batch of `size` samples (a full one by default) that `rank` of `world` owns."""
        return slots(self.batch_size, rank, world, size)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """The batch at `step` as (shard, row), int64 [n]; n is `size(step)`, or the rank's part of it."""
        return self.block(epoch, step, 1, rank, world)

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        """Batches `step` … `step + count - 1` end to end, as (shard, row), int64 [sum of the batches' parts].

        Every full batch fills as many places as `slots(rank, world)` has; only an epoch's last batch may be shorter.
        """
        self._check(step, count)
        full = min(step + count, self.full_steps) - step
        pieces = []
        if full > 0:
            slot = _range(self.slots(rank, world))
            lane, offset = slot // self._per_lane, slot % self._per_lane
            positions = np.arange(step, step + full)[:, None] * self._per_lane + offset
            pieces.append((np.broadcast_to(lane, positions.shape).reshape(-1), positions.reshape(-1)))
        if full < count:
            pieces.append(self._of_rest(_range(self.slots(rank, world, self._rest))))
        if len(pieces) == 1:
            return self.locate(epoch, *pieces[0])
        lanes, places = zip(*pieces, strict=True)
        return self.locate(epoch, np.concatenate(lanes), np.concatenate(places))

    def samples(self, epoch: int, number: Ints) -> tuple[Ints, Ints]:
        """(shard, row) of samples by their number in the epoch, in [0, rows), where all batches lie end to end."""
        step, slot = np.divmod(number, self.batch_size)
        lane, offset = slot // self._per_lane, slot % self._per_lane
        position = step * self._per_lane + offset
        rest = np.flatnonzero(step == self.full_steps)
        if rest.size:
            lane[rest], position[rest] = self._of_rest(slot[rest])
        return self.locate(epoch, lane, position)

    def _of_rest(self, sample: Ints) -> tuple[Ints, Ints]:
        """(lane, position in it) of samples of the short batch."""
        lane = np.searchsorted(self._rest_ends, sample, side="right")
        return lane, self._rest_firsts[lane] + sample

    def _check(self, step: int, count: int) -> None:
        if step < 0 or count < 1 or step + count > self.steps:
            raise IndexError(f"steps {step} to {step + count - 1} of an epoch of {self.steps} steps")

    def rest(self, position: int, sample: Ints) -> tuple[Ints, Ints]:
        """(lane, position in it) of samples of what is left from `position` on in all lanes, lane by lane."""
        left = self._lane_rows - position
        ends = np.cumsum(left)
        lane = np.searchsorted(ends, sample, side="right")
        return lane, position - (ends - left)[lane] + sample

    def locate(self, epoch: int, lane: Ints, position: Ints) -> tuple[Ints, Ints]:
        """(shard, row) of the samples at `position` in `lane`, all int64 [n]."""
        view = self._epoch(epoch)
        shard, row = np.empty_like(position), np.empty_like(position)
        start = 0
        while start < len(position):
            part = slice(start, self._chunk_end(view, position, start))
            virtual = self._shuffled(view, lane[part], position[part]) if self.shuffle else position[part]
            low, high = np.searchsorted(view.ends, [virtual.min(), virtual.max()], side="right")
            near = slice(low, high + 1)
            place = np.searchsorted(view.ends[near], virtual, side="right")
            shard[part] = view.shards[near][place]
            np.subtract(virtual, view.offsets[near][place], out=row[part])
            start = part.stop
        return shard, row

    def _chunk_end(self, view: _Epoch, position: Ints, start: int) -> int:
        """Where to end what is planned together: in one lane, where positions rise, preferably with the window."""
        stop = min(start + _CHUNK, len(position))
        if self.lanes == 1:
            inside = int(np.searchsorted(position[start:stop], view.windows.find(int(position[start]))[2]))
            return start + inside if inside > _CHUNK // 8 else stop
        return stop

    def _shuffled(self, view: _Epoch, lane: Ints, position: Ints) -> Ints:
        """Virtual rows, int64 [n]: each position permuted inside its window."""
        windows = view.windows
        index, first, end = windows.find(int(position.min()))
        if position.max() < end:  # mostly all are of one window, and what it fixes is [1] instead of [n]
            start, size, room = np.array([first]), windows.rows(index, lane), np.array([end - first])
            keys = spread(np.array([index], dtype=np.uint64), view.lane_keys)
            keys = keys if self.lanes == 1 else keys[lane]
        else:
            end = int(self._lane_rows.max())
            window, start, size, room = windows.find_all(position, lane)
            keys = spread(window.view(np.uint64), view.lane_keys[lane])
        halves = ((position - start).astype(np.uint32), size.astype(np.uint32), keys, room.astype(np.uint32))
        virtual: Ints = permute(*halves) + start
        if self.lanes > 1:
            virtual += (self._lane_starts + view.turns)[lane]
            if end + view.turns.max() > self._lane_rows.min():  # some may have passed the end of their lane
                np.subtract(virtual, self._lane_rows[lane], out=virtual, where=virtual >= self._bounds[lane + 1])
        return virtual

    # -- what lies ahead -----------------------------------------------------------------------------------------

    def ahead(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[Ints]:
        """The shards that `rank` reads from `step` to the end of `epoch`, in the order in which it first needs them.

        Yields int64 arrays, one for the open windows and one for each later set of windows that needs more shards; each
        shard comes once. In the open windows there may be shards whose rows have all been read before `step`. Memory is
        one byte a shard, and the next array costs microseconds.
        """
        for _, shards in self.needs(epoch, step, rank, world):
            yield shards

    def needs(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Ints]]:
        """As `ahead`, with the step from which each array of shards is needed."""
        slot = self.slots(rank, world)
        seen = np.zeros(len(self.shard_rows), dtype=np.bool_)
        lanes = np.arange(slot.start // self._per_lane, (slot.stop - 1) // self._per_lane + 1)
        position, end = step * self._per_lane, self.full_steps * self._per_lane
        for at, shards in self.span(epoch, lanes, position, end, seen):
            yield at // self._per_lane, shards
        if step < self.steps > self.full_steps:
            shards = unseen(self.block(epoch, self.full_steps, 1, rank, world)[0], seen)
            if shards.size:
                yield self.full_steps, shards

    def span(
        self, epoch: int, lanes: Ints, position: int, end: int, seen: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[int, Ints]]:
        """(position, shards that are needed from there on) of `lanes`, in positions from `position` until before `end`;
        without those that are `seen`, bool [shards], which they are then."""
        view = self._epoch(epoch)
        while position < end:
            index, start, _ = view.windows.find(position)
            stop = start + view.windows.rows(index, lanes)
            shards = unseen(self._between(view, lanes, start if self.shuffle else position, stop), seen)
            if shards.size:
                yield position, shards
            position = int(stop.min())

    def _between(self, view: _Epoch, lanes: Ints, start: int, stop: Ints) -> Ints:
        """The shards of the positions from `start` to `stop` ([n] or [1]) of `lanes`, int64; some twice."""
        base, rows, turn = self._lane_starts[lanes], self._lane_rows[lanes], view.turns[lanes]
        low, high = start + turn, stop + turn  # what passes the end of the lane goes on at its start
        lows = np.concatenate([np.minimum(low, rows), np.maximum(low - rows, 0)]) + np.tile(base, 2)
        highs = np.concatenate([np.minimum(high, rows), np.maximum(high - rows, 0)]) + np.tile(base, 2)
        lows, highs = lows[lows < highs], highs[lows < highs]
        firsts = np.searchsorted(view.ends, lows, side="right")
        ends = np.searchsorted(view.ends, highs, side="left") + 1
        parts = [view.shards[first:end] for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]
        shards = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return shards[self.shard_rows[shards] > 0]

    def reads(self, epoch: int, rank: int = 0, world: int = 1) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The shards that `rank` reads in `epoch`, int64 [n], and how many rows of each on average, float64 [n].

        From the bounds of lanes alone, so the short batch of an epoch counts as spread over the rank's lanes.
        """
        owned = _range(self.slots(rank, world)) // self._per_lane
        share = np.bincount(owned, minlength=self.lanes) / self._per_lane
        view = self._epoch(epoch)
        low, high = int(self._bounds[owned[0]]), int(self._bounds[owned[-1] + 1])
        first, end = np.searchsorted(view.ends, low, side="right"), np.searchsorted(view.ends, high, side="left") + 1
        edges = np.concatenate([[low], np.minimum(view.ends[first:end], high)])
        rows: npt.NDArray[np.float64] = np.diff(
            np.interp(edges, self._bounds, np.concatenate([[0.0], np.cumsum(share * self._lane_rows)]))
        )
        shards = view.shards[first:end][rows > 0]
        if self.keep_lanes:  # a shard between two lanes is in two pieces
            shards, piece = np.unique(shards, return_inverse=True)
            return shards, np.bincount(piece, weights=rows[rows > 0], minlength=len(shards)).astype(np.float64)
        return shards, rows[rows > 0]

    # -- epochs --------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> _Epoch:
        latest = self._latest  # read once: another thread may replace it
        if latest is None or latest[0] != epoch:
            latest = self._latest = (epoch, self._plan(epoch))
        return latest[1]

    def _plan(self, epoch: int) -> _Epoch:
        name = ("order", ORDER_VERSION, self.seed, epoch)
        key, pieces = keyed_uint64(*name, "shards"), self._pieces
        if pieces is not None:
            place = _permuted(len(pieces.rows), key, pieces.lanes)
            shards, rows = pieces.shards[place], pieces.rows[place]
        else:
            shards = _permuted(len(self.shard_rows), key) if self.shuffle else np.arange(len(self.shard_rows))
            rows = np.take(self.shard_rows, shards)  # four times as fast as indexing when its memory is fresh
        ends = np.cumsum(rows)
        starts = np.subtract(ends, rows, out=rows)
        turns = np.zeros(self.lanes, dtype=np.int64)
        if self.rows and not self.keep_lanes:  # kept pieces begin where lanes do
            whole = np.searchsorted(starts, self._lane_starts)
            turns = starts[np.minimum(whole, len(starts) - 1)] - self._lane_starts
            turns[(turns < 0) | (turns >= self._lane_rows)] = 0
        offsets = starts if pieces is None else starts - pieces.firsts[place]
        # Other windows in each epoch, so that no two rows of a shard are parted, or together, in all of them.
        first = self.first_window - keyed_uint64(*name, "windows") % (self.first_window // 2 + 1)
        keys = spread(np.arange(self.lanes, dtype=np.uint64), np.uint64(keyed_uint64(*name, "rows")))
        return _Epoch(shards, offsets, ends, turns, Windows(first, self.window, self._lane_rows), keys)

    def _kept_pieces(self) -> _Pieces:
        """The shards in an order of the seed alone, cut where lanes end."""
        shards = _permuted(len(self.shard_rows), keyed_uint64("order", ORDER_VERSION, self.seed, "kept"))
        ends = np.cumsum(self.shard_rows[shards])
        cuts = np.sort(np.concatenate([self._bounds, ends]))
        rows = np.diff(cuts)
        starts, rows = cuts[:-1][rows > 0], rows[rows > 0]
        place = np.searchsorted(ends, starts, side="right")
        firsts = starts - (ends[place] - self.shard_rows[shards[place]])
        lanes = np.searchsorted(self._bounds, starts, side="right") - 1
        return _Pieces(shards[place], firsts, rows, lanes)


def slots(batch: int, rank: int, world: int, size: int | None = None) -> slice:
    """The part of a global batch of `size` samples (`batch` by default) that `rank` of `world` owns.

    Sample i sits in slot s = ⌊i·B/size⌋ of the B slots, and rank r owns the slots with ⌊s·world/B⌋ = r. So ranks differ
    by at most one sample in full batches, and a short batch is spread evenly over the same slots.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} ranks")
    if world > batch:
        raise ParamsError(
            f"{world} ranks share stream.batch_size={batch}: some would never get a sample. "
            f"Raise stream.batch_size to at least {world}, or lower train.ranks."
        )
    size = batch if size is None else size
    first, end = (-(-owner * batch // world) for owner in (rank, rank + 1))
    return slice(-(-first * size // batch), -(-end * size // batch))


def _permuted(count: int, key: int, groups: Ints | None = None) -> Ints:
    """[0, count) in a keyed random order, int64 [count]; with `groups`, [count], those of one group together.

    Each number is packed below its group and the upper bits of its hash into one word, since words are sorted ten times
    as fast as indices, and are all different, so that any sort gives the same.
    """
    number_bits = max(1, (count - 1).bit_length())
    group_bits = 0 if groups is None or not count else int(groups.max()).bit_length()
    words = np.arange(count, dtype=np.uint64)
    below = np.uint64((1 << number_bits) - 1)
    for start in range(0, count, _HASHED):
        part = words[start : start + _HASHED]
        hashed = (spread(part, np.uint64(key)) >> np.uint64(group_bits)) & ~below
        if groups is not None and group_bits:
            hashed |= groups[start : start + _HASHED].view(np.uint64) << np.uint64(64 - group_bits)
        part |= hashed
    words.sort()
    words &= below
    return words.view(np.int64)


def unseen(shards: Ints, seen: npt.NDArray[np.bool_]) -> Ints:
    """Those of `shards` that are not `seen` yet, once each, in their order; they are seen then."""
    new = shards[~seen[shards]]
    _, places = np.unique(new, return_index=True)
    new = new[np.sort(places)]
    seen[new] = True
    return new


def _range(part: slice) -> Ints:
    return np.arange(part.start, part.stop, dtype=np.int64)
