"""How long those transfers take that torch starts by itself: a step now and then runs under its profiler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch.autograd import profiler

from pipelines.diagnosis.trace import COLLECTIVE, union

#: Of the training's time, what watching may take: starting, stopping and reading the profiler takes 15 – 60 ms a time.
COST = 0.005
FIRST = 3  # the step of a process that is watched first: those before it connect, allocate and compile


class Sampler:
    """Watches whole steps of one rank on `device`, as many as `COST` allows. A profiler that somebody else has started
    is left alone, and nothing is watched meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps = 0
        self._next = 0.0  # on the clock
        self._seconds = self._busy = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step, from its passes to its optimiser."""
        self._steps += 1
        began = perf_counter()
        if self._steps < FIRST or began < self._next or profiler._is_profiler_enabled:
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library tells of each start and end on stderr otherwise
        accelerator = None if self.device.type == "cpu" else self.device.type
        self._settle()
        with profiler.profile(use_device=accelerator) as watched:
            start = perf_counter()
            yield
            self._settle()
            end = perf_counter()
        self._busy += under_way(watched.kineto_results.events())
        self._seconds += end - start
        now = perf_counter()
        self._next = now + (start - began + now - end) / COST

    def share(self) -> float | None:
        """Of the steps watched since the last call, the share in which a transfer was under way; None if there was
        none."""
        share = self._busy / self._seconds if self._seconds else None
        self._seconds = self._busy = 0.0
        return share

    def _settle(self) -> None:
        getattr(torch, self.device.type).synchronize()


def under_way(events: Any) -> float:
    """Seconds in which at least one collective of the profiler's raw events ran, from when this rank asked for it to
    its end. An accelerator's count where it has any: on the host they are only enqueued."""
    found = [event for event in events if COLLECTIVE.search(event.name())]
    cpu = torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    found = [event for event in found if event.device_type() != cpu] or found
    return sum(end - start for start, end in union((event.start_ns(), event.end_ns()) for event in found)) * 1e-9
