"""The order of an epoch: a pure function (seed, epoch, position) → (shard, row), with O(shards) memory.

An epoch permutes the shards and lays their rows end to end, rotated by a keyed offset: the virtual rows [0, N). They
are cut into L equal lanes, and a lane into windows, each permuted on its own. Every global batch of B samples takes
B/L samples from each lane. All of it is arithmetic on the position, so any step of any epoch costs the same to reach,
and nothing depends on how many ranks share the work.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.digest import keyed_uint64
from storage.errors import ParamsError

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

#: Raised whenever the same arguments would give another order; saved stream states carry it.
ORDER_VERSION = 1
DEFAULT_LANES = 16
DEFAULT_WINDOW = 65_536

_CHUNK = 4096  # samples planned at a time, so that the scratch arrays stay in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: the increment of SplitMix64
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)
# Of the Feistel rounds: arrays of one word, which ufuncs take faster than scalars.
_FACTORS = [np.array([keyed_uint64("round", turn) | 1], dtype=np.uint64) for turn in range(10)]
_LAST_FACTOR = np.array([0xC4CEB9FE1A85EC53], dtype=np.uint64)  # of MurmurHash3's finaliser
_SHIFT, _HALF = np.array([29], dtype=np.uint64), np.array([32], dtype=np.uint64)


def choose_lanes(batch: int, rows: int, window: int = DEFAULT_WINDOW, limit: int = DEFAULT_LANES) -> int:
    """The largest divisor of `batch` that is at most `limit` and leaves every lane a window of rows.

    So small data has one lane, which shuffles best, and only large data is read in several places at once.
    """
    most = min(limit, max(1, rows // window), batch)
    return next(lanes for lanes in range(most, 0, -1) if batch % lanes == 0)


@dataclass(frozen=True)
class _Epoch:
    """What an epoch fixes: the shards as they are read, where each starts among the virtual rows, and keys."""

    shards: Ints  # [S], indices into shard_rows
    starts: Ints  # [S]
    ends: Ints  # [S]
    rotation: int
    key: int


class Order:
    """The order of the rows of `shard_rows` (int64 [S], each ≥ 0) in global batches of `batch` samples.

    `lanes` must divide `batch`; None chooses. `window` is in rows. With `shuffle=False` rows come as they are stored.
    Every row comes exactly once an epoch; the last batch of an epoch is short when `batch` doesn't divide the rows.
    Costs under 0.1 µs a sample when planned in blocks, and some 30 ms a million shards once an epoch.
    """

    def __init__(
        self,
        shard_rows: npt.ArrayLike,
        *,
        batch: int,
        seed: int,
        lanes: int | None = None,
        window: int = DEFAULT_WINDOW,
        shuffle: bool = True,
    ) -> None:
        self.shard_rows: Ints = np.asarray(shard_rows, dtype=np.int64).reshape(-1)
        if batch < 1:
            raise ParamsError(f"stream.batch_size={batch}: must be at least 1.")
        if window < 1:
            raise ParamsError(f"stream.window={window}: must be at least 1.")
        if (self.shard_rows < 0).any():
            raise ValueError(f"shard_rows: shard {int(self.shard_rows.argmin())} has a negative number of rows")
        self.rows = int(self.shard_rows.sum())
        if lanes is not None and (lanes < 1 or batch % lanes):
            near = choose_lanes(batch, self.rows, window=1, limit=max(1, lanes))
            raise ParamsError(
                f"stream.lanes={lanes} does not divide stream.batch_size={batch}, so that a batch cannot take as "
                f"much from each lane. Set stream.lanes to {near}, or leave it out."
            )
        self.batch_size, self.seed, self.window, self.shuffle = batch, seed, window, shuffle
        self.lanes = (lanes or choose_lanes(batch, self.rows, window)) if shuffle else 1
        self.full_steps, self._rest = divmod(self.rows, batch)
        self.steps = self.full_steps + (self._rest > 0)
        self._per_lane = batch // self.lanes  # samples of a lane in a full batch
        bounds = np.array([lane * self.rows // self.lanes for lane in range(self.lanes + 1)], dtype=np.int64)
        self._lane_starts, lane_rows = bounds[:-1], np.diff(bounds)
        # All lanes have the same number of windows; the last window of each takes up the rest.
        self._last_window = max(1, int(lane_rows.min()) // window) - 1
        self._last_sizes = lane_rows - self._last_window * window
        rest = lane_rows - self.full_steps * self._per_lane  # what each lane gives to the short batch
        self._rest_ends = np.cumsum(rest)
        self._rest_firsts = self.full_steps * self._per_lane - (self._rest_ends - rest)
        self._latest: tuple[int, _Epoch] | None = None

    def size(self, step: int) -> int:
        """Samples in the global batch at `step`: `batch`, or fewer in the last one of an epoch."""
        self._check(step, 1)
        return self.batch_size if step < self.full_steps else self._rest

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        """The part of a global batch of `size` samples (a full one by default) that `rank` of `world` owns.

        Sample i sits in slot s = ⌊i·B/size⌋ of the B slots, and rank r owns the slots with ⌊s·world/B⌋ = r. So ranks
        differ by at most one sample in full batches, and a short batch is spread evenly over the same slots.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks")
        if world > self.batch_size:
            raise ParamsError(
                f"{world} ranks share stream.batch_size={self.batch_size}: some would never get a sample. "
                f"Raise stream.batch_size to at least {world}, or lower train.ranks."
            )
        batch, size = self.batch_size, self.batch_size if size is None else size
        first, end = (-(-owner * batch // world) for owner in (rank, rank + 1))
        return slice(-(-first * size // batch), -(-end * size // batch))

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
            sample = _range(self.slots(rank, world, self._rest))
            lane = np.searchsorted(self._rest_ends, sample, side="right")
            pieces.append((lane, self._rest_firsts[lane] + sample))
        if len(pieces) == 1:
            return self._locate(epoch, *pieces[0])
        lanes, places = zip(*pieces, strict=True)
        return self._locate(epoch, np.concatenate(lanes), np.concatenate(places))

    def _check(self, step: int, count: int) -> None:
        if step < 0 or count < 1 or step + count > self.steps:
            raise IndexError(f"steps {step} to {step + count - 1} of an epoch of {self.steps} steps")

    def _locate(self, epoch: int, lane: Ints, position: Ints) -> tuple[Ints, Ints]:
        """(shard, row) of the samples at `position` in `lane`, all int64 [n]."""
        view = self._epoch(epoch)
        shard, row = np.empty_like(position), np.empty_like(position)
        for start in range(0, len(position), _CHUNK):
            part = slice(start, start + _CHUNK)
            virtual = self._shuffled(view, lane[part], position[part]) if self.shuffle else position[part]
            place = np.searchsorted(view.ends, virtual, side="right")
            np.take(view.shards, place, out=shard[part])
            np.subtract(virtual, view.starts[place], out=row[part])
        return shard, row

    def _shuffled(self, view: _Epoch, lane: Ints, position: Ints) -> Ints:
        """Virtual rows, int64 [n]: each position permuted inside its window, and the whole rotated."""
        window = np.minimum(position // self.window, self._last_window)
        first = window * self.window
        size = np.where(window == self._last_window, self._last_sizes[lane], self.window)
        lane_keys = _mix(np.arange(self.lanes, dtype=np.uint64) * _GOLDEN + np.uint64(view.key))
        keys = _mix(window.view(np.uint64) * _GOLDEN + lane_keys[lane])
        inside = permute((position - first).view(np.uint64), size.view(np.uint64), keys).view(np.int64)
        virtual: Ints = inside + first + self._lane_starts[lane] + view.rotation
        np.subtract(virtual, self.rows, out=virtual, where=virtual >= self.rows)
        return virtual

    def _epoch(self, epoch: int) -> _Epoch:
        latest = self._latest  # read once: another thread may replace it
        if latest is None or latest[0] != epoch:
            latest = self._latest = (epoch, self._plan(epoch))
        return latest[1]

    def _plan(self, epoch: int) -> _Epoch:
        count, name = len(self.shard_rows), ("order", ORDER_VERSION, self.seed, epoch)
        shards, rotation = np.arange(count, dtype=np.int64), 0
        if self.shuffle:
            # A bijection of 64-bit words has no ties, so that any sort gives the same permutation.
            shards = np.argsort(_mix(shards.view(np.uint64) * _GOLDEN + np.uint64(keyed_uint64(*name, "shards"))))
            rotation = keyed_uint64(*name, "rotation") % max(1, self.rows)
        rows = self.shard_rows[shards]
        ends = np.cumsum(rows)
        return _Epoch(shards, ends - rows, ends, rotation, keyed_uint64(*name, "rows"))


def permute(index: Words, size: Words, key: Words) -> Words:
    """A keyed permutation of [0, size) at `index` < size; all uint64 [n], each place with its own size and key.

    A Feistel network on a grid of columns × 2^bits cells that just holds `size`, walked along its cycles until it
    lands inside, mostly at once (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    bits = np.frexp((size - _ONE).astype(np.float64))[1].astype(np.uint64) >> _ONE
    columns = ((size - _ONE) >> bits) + _ONE
    value = _feistel(index, columns, bits, key)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        again = _feistel(value[outside], columns[outside], bits[outside], key[outside])
        value[outside] = again
        outside = outside[again >= size[outside]]
    return value


def _feistel(value: Words, columns: Words, bits: Words, key: Words) -> Words:
    """A keyed permutation of [0, columns · 2^bits): each half in turn is shifted by a hash of the other."""
    mask = (_ONE << bits) - _ONE
    high, low = value >> bits, value & mask
    hashed, scratch = np.empty_like(value), np.empty_like(value)
    for turn, factor in enumerate(_FACTORS):
        np.add(high if turn % 2 else low, key, out=hashed)
        hashed *= factor
        np.right_shift(hashed, _SHIFT, out=scratch)
        hashed ^= scratch
        hashed *= _LAST_FACTOR
        hashed >>= _HALF
        if turn % 2:
            hashed &= mask
            low ^= hashed
        else:  # high + ⌊columns · hash / 2^32⌋, modulo columns
            hashed *= columns
            hashed >>= _HALF
            high += hashed
            np.subtract(high, columns, out=scratch)
            np.minimum(high, scratch, out=high)  # the difference wraps round where high < columns
    high <<= bits
    high |= low
    return high


def _mix(words: Words) -> Words:
    """SplitMix64's finaliser, a bijection of 64-bit words (Steele, Lea, Flood, OOPSLA 2014; Stafford's variant 13)."""
    mixed = words ^ (words >> np.uint64(30))
    mixed *= _MIX_A
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_B
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _range(part: slice) -> Ints:
    return np.arange(part.start, part.stop, dtype=np.int64)
