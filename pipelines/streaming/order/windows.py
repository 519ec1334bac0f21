"""The windows of a lane: they start small, so that a first batch needs few shards, and double up to their full size."""

import numpy as np

from pipelines.streaming.arrays import Ints


class Windows:
    """The windows of lanes of `lane_rows` rows (int64 [L], equal but for one row): `first`, 2·`first`, … rows while
    that is below `size`, then `size` each. The last one takes up the rest, so that it is up to twice as large.

    All lanes have the same windows but for the end of the last, and where one starts is O(1) arithmetic.
    """

    def __init__(self, first: int, size: int, lane_rows: Ints) -> None:
        self.first, self.size, self.lane_rows = first, size, lane_rows
        self._growing = (-(-size // first) - 1).bit_length()  # windows below the full size
        self._grown = first * ((1 << self._growing) - 1)  # where full windows begin
        self.last = max(0, self._unlimited(int(lane_rows.min())) - 1)
        self._last_start = self._start(self.last)
        self._end = int(lane_rows.max())
        self._uneven = bool(lane_rows.min() < self._end)

    def find(self, position: int) -> tuple[int, int, int]:
        """The window that holds `position`, where it starts, and where it ends (in the longest lane)."""
        if position >= self._last_start:
            return self.last, self._last_start, self._end
        index = self._unlimited(position)
        return index, self._start(index), self._start(index + 1)

    def rows(self, index: int, lane: Ints) -> Ints:
        """The rows of a window in each lane, int64 [n], or [1] where they are the same."""
        if index < self.last:
            return np.array([self._start(index + 1) - self._start(index)])
        return (self.lane_rows[lane] if self._uneven else self.lane_rows[:1]) - self._last_start

    def find_all(self, position: Ints, lane: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The window that holds each position, where it starts, its rows, and those in the longest lane, all [n]."""
        doublings = np.frexp((position // self.first + 1).astype(np.float64))[1] - 1
        index = np.where(position < self._grown, doublings, (position - self._grown) // self.size + self._growing)
        index = np.minimum(index, self.last)
        growing = np.minimum(index, self._growing)
        start = self.first * ((1 << growing) - 1) + (index - growing) * self.size
        rows = np.where(index < self._growing, self.first << growing, self.size)
        in_last = index == self.last
        longest = np.where(in_last, self._end - self._last_start, rows)
        return index, start, np.where(in_last, self.lane_rows[lane] - self._last_start, rows), longest

    def _unlimited(self, position: int) -> int:
        """The window that would hold `position` if the lanes had no end."""
        if position < self._grown:
            return (position // self.first + 1).bit_length() - 1
        return (position - self._grown) // self.size + self._growing

    def _start(self, index: int) -> int:
        growing = min(index, self._growing)
        return self.first * ((1 << growing) - 1) + (index - growing) * self.size
