"""Keyed permutations of [0, size): `permute` evaluates one at any index, many at once; `shuffled` makes whole ones.

Up to 64 values a permutation is drawn evenly from all, by ranking hashes. Above, a Feistel network on a grid of columns
× 2^bits cells that just holds the range is walked along its cycles until it lands inside, mostly at once (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). All in 32-bit words, which NumPy takes two to four times as
fast as 64-bit ones.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.streaming.arrays import Ints
from storage.digest import keyed_uint64

ALONE = 1 << 17  # fewer numbers take no longer than a second thread takes to start


def in_halves(count: int, work: Callable[[slice], object]) -> None:
    """`work` on the halves of [0, count), where these are large in two threads: of what NumPy does without the GIL."""
    lower, upper = slice(0, count // 2), slice(count // 2, count)
    if count < ALONE:
        work(lower)
        work(upper)
        return
    with ThreadPoolExecutor(1) as other:
        done = other.submit(work, lower)
        work(upper)
        done.result()


Words = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.uint32]
Word = TypeVar("Word", np.uint32, np.uint64)

#: The most values that `permute` takes.
LIMIT = 1 << 31

_ROUNDS = 6  # what ranges of 4096 and more need to pass for random permutations (docs/order.md)
_TWICE = 4096  # smaller ranges go through twice as many
_RANKED = 64  # up to here, hashes are ranked
_TOGETHER = 1 << 15  # numbers permuted at a time: fewer, and two threads wait for one another
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: the increment of SplitMix64
_MIX_A, _MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# Arrays of one word, which ufuncs take faster than scalars.
_ONE, _FOLD, _HALF = (np.array([word], dtype=np.uint32) for word in (1, 15, 16))
_FACTORS = [np.array([keyed_uint64("round", turn) & 0xFFFFFFFF | 1], dtype=np.uint32) for turn in range(2 * _ROUNDS)]
_LAST_FACTOR = np.array([0x846CA68B], dtype=np.uint32)  # of Wellons' hash "lowbias32"


def mix(words: Words) -> Words:
    """SplitMix64's finaliser, a bijection of 64-bit words (Steele, Lea, Flood, OOPSLA 2014; Stafford's variant 13)."""
    mixed = words ^ (words >> np.uint64(30))
    mixed *= _MIX_A
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_B
    mixed ^= mixed >> np.uint64(31)
    return mixed


def spread(numbers: Words, key: Words | np.uint64) -> Words:
    """Hashes of small numbers under a key, different for different numbers."""
    return mix(numbers * _GOLDEN + key)


def permute(index: Halves, size: Halves, key: Words, room: Halves | None = None) -> Halves:
    """A keyed permutation of [0, size) at `index` < size, uint32 [n].

    `size` (uint32, up to LIMIT) and `key` (uint64) are [n], or [1] where all places have the same. So is `room`, for
    which the grid is laid out (None: as `size`): it may be a little more, so that places of different sizes share a
    grid, which is faster. Costs some 15 ns a value, twice that below 4096, and far more up to 64.
    """
    if (index >= size).any():
        raise ValueError("permute: an index outside its range")  # it might be walked for ever
    last = (size if room is None else room) - _ONE
    bits = np.frexp(last.astype(np.float64))[1].astype(np.uint32) >> _ONE
    grid = (size, (last >> bits) + _ONE, bits, key.astype(np.uint32), (key >> np.uint64(32)).astype(np.uint32))
    value = _walk(index, grid, _FACTORS[:_ROUNDS])
    smallest = size.min()
    if smallest < _TWICE:
        few = _where(size < _TWICE, value)
        value[few] = _walk(value[few], tuple(_at(array, few) for array in grid), _FACTORS[_ROUNDS:])
    if smallest <= _RANKED:
        few = _where(size <= _RANKED, value)
        value[few] = _rank(index[few], _at(size, few), _at(key, few))
    return value


def _where(chosen: npt.NDArray[np.bool_], like: Halves) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.broadcast_to(chosen, like.shape))


def _at(array: npt.NDArray[Word], places: npt.NDArray[np.intp]) -> npt.NDArray[Word]:
    """`array` at `places`, or its only element, which stands for all."""
    return array if len(array) == 1 else array[places]


def _rank(index: Halves, size: Halves, key: Words) -> Halves:
    """The rank of the hash of `index` among those of [0, size), size ≤ 64; equal ones are ranked by their index."""
    number = np.arange(size.max(), dtype=np.uint64)
    hashes = (spread(number, key[:, None]) & ~np.uint64(_RANKED - 1)) | number
    hashes = np.broadcast_to(hashes, (len(index), len(number)))
    own = hashes[np.arange(len(index)), index][:, None]
    ranks: Halves = ((hashes < own) & (number < size[:, None])).sum(axis=1, dtype=np.uint32)
    return ranks


def _walk(index: Halves, grid: tuple[Halves, ...], factors: list[Halves]) -> Halves:
    value = _feistel(index, grid, factors)
    outside = np.flatnonzero(value >= grid[0])
    while outside.size:
        part = tuple(_at(array, outside) for array in grid)
        again = _feistel(value[outside], part, factors)
        value[outside] = again
        outside = outside[again >= part[0]]
    return value


def _feistel(value: Halves, grid: tuple[Halves, ...], factors: list[Halves]) -> Halves:
    """A keyed permutation of [0, columns · 2^bits): each half in turn is shifted by a hash of the other."""
    _, columns, bits, *keys = grid
    mask = (_ONE << bits) - _ONE
    high: Halves
    high, low = value >> bits, value & mask
    hashed, scratch = np.empty_like(value), np.empty_like(value)
    for turn, factor in enumerate(factors):
        np.add(high if turn % 2 else low, keys[turn // 2 % 2], out=hashed)
        hashed *= factor
        np.right_shift(hashed, _FOLD, out=scratch)
        hashed ^= scratch
        hashed *= _LAST_FACTOR
        hashed >>= _HALF
        if turn % 2:
            hashed &= mask
            low ^= hashed
        else:  # high + ⌊columns · hash / 2^16⌋, modulo columns
            hashed *= columns
            hashed >>= _HALF
            high += hashed
            np.subtract(high, columns, out=scratch)
            np.minimum(high, scratch, out=high)  # the difference wraps round where high < columns
    high <<= bits
    high |= low
    return high


def shuffled(sizes: Ints, key: int) -> Ints:
    """The numbers from 0 on, in consecutive groups of `sizes` (int64 [G]), each group in a keyed random order of its
    own, int64 [sum(sizes)]. Costs some 15 ns a number in two threads, 40 with many groups."""
    ends, count = np.cumsum(sizes), int(sizes.sum())
    keys, numbers = spread(np.arange(len(sizes), dtype=np.uint64), np.uint64(key)), np.empty(count, dtype=np.int64)

    def fill(part: slice) -> None:
        for start in range(part.start, part.stop, _TOGETHER):
            some = np.arange(start, min(start + _TOGETHER, part.stop))
            group = np.searchsorted(ends, some, side="right") if len(sizes) > 1 else np.zeros(1, dtype=np.int64)
            size = sizes[group]
            first = ends[group] - size
            place = permute((some - first).astype(np.uint32), size.astype(np.uint32), keys[group])
            np.add(first, place, out=numbers[start : start + len(some)])

    in_halves(count, fill)
    return numbers
