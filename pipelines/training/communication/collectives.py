"""Collectives among the events of a profiler, and how long at least one of them was under way."""

import re
from collections.abc import Iterable

#: Names of collective operators and kernels, as torch.profiler has them.
COLLECTIVE = re.compile(r"^(c10d::|gloo:|nccl:|xccl:|mpi:)|nccl(Dev)?Kernel", re.IGNORECASE)

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted, without overlaps."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
