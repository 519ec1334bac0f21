"""Where the lines of a file end: \\n, \\r\\n and \\r, as `bytes.splitlines` has it."""

import re

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_END = re.compile(rb"\r\n|\n|\r")


def line_ends(data: bytes, start: int, stop: int) -> tuple[Ints, Ints]:
    """Where line ends begin and where the next lines do, int64 [lines] each, of data[start:stop], which cuts no \\r\\n
    in two. What follows the last line end is a line, too, where `stop` is the end of the data."""
    part = np.frombuffer(data, np.uint8)[start:stop]
    at = np.flatnonzero(part == 10) + start
    after = at + 1
    if data.find(b"\r", start, stop) >= 0:
        text = np.frombuffer(data, np.uint8)
        returns = np.flatnonzero(part == 13) + start
        paired = text[np.minimum(returns + 1, len(data) - 1)] == 10
        at = np.sort(np.concatenate([np.setdiff1d(at, returns[paired] + 1, assume_unique=True), returns]))
        after = np.sort(np.concatenate([after, returns[~paired] + 1]))
    if stop == len(data) and stop > (after[-1] if len(after) else start):
        at, after = np.append(at, stop), np.append(after, stop)
    return at, after


def whole_crlf(data: bytes, stop: int) -> int:
    """`stop`, or the place behind the \\r\\n that it would cut in two."""
    return stop + 1 if data[stop - 1 : stop + 1] == b"\r\n" else min(stop, len(data))


def next_line(data: bytes, start: int) -> tuple[int, int]:
    """Where the line that begins at `start` ends, and where the next one begins."""
    found = _END.search(data, start)
    return found.span() if found else (len(data), len(data))


def breaks(data: bytes) -> int:
    """How many line ends there are."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
