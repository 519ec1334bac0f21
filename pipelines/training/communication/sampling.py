"""How long those transfers take that torch starts by itself: a step now and then runs under its profiler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch.autograd import profiler
from torch.profiler import ProfilerActivity, supported_activities
from torch.profiler.profiler import PROFILER_STEP_NAME

from pipelines.training.communication.collectives import COLLECTIVE, union

#: Of a long training's time, what watching takes: starting, stopping and reading the profiler is 15 – 60 ms a time.
COST = 0.005
FIRST = 3  # the step of a process that is watched first: those before it connect, allocate and compile


class Sampler:
    """Watches whole steps of one rank on `device`, as many as `COST` allows after the first one. Nothing is watched
    while somebody else has a profiler."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps = 0
        self._next = 0.0  # on the clock
        self._seconds = self._busy = 0.0

    @classmethod
    def of(cls, device: torch.device) -> "Sampler | None":
        """None where torch's profiler can't see what the device does."""
        kinds = {"cpu": ProfilerActivity.CPU, "cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}
        seen = supported_activities()  # type: ignore[no-untyped-call]
        return cls(device) if kinds.get(device.type) in seen else None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step, from asking for its batch to its optimiser."""
        self._steps += 1
        began = perf_counter()
        if self._steps < FIRST or began < self._next or _profiled():
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library tells of each start and end on stderr otherwise
        accelerator = None if self.device.type == "cpu" else self.device.type
        self._settle()
        with profiler.profile(use_device=accelerator, use_kineto=True) as watched:
            start = perf_counter()
            try:
                yield
                self._settle()
            except BaseException:
                watched.use_device = None  # its end would wait for a device that may be broken, or for other ranks
                raise
            end = perf_counter()
        self._busy += under_way(watched.kineto_results.events(), on_device=accelerator is not None)
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


def _profiled() -> bool:
    """Whether somebody else's profiler records, or will: one that is made for some steps later doesn't say so yet, but
    a second one would use up its session."""
    return profiler._is_profiler_enabled or PROFILER_STEP_NAME in profiler.KinetoStepTracker._step_dict


def under_way(events: Any, *, on_device: bool = False) -> float:
    """Seconds in which at least one collective of the profiler's raw events ran, from when it was started to its end:
    on an accelerator its kernels there, which the host only enqueues."""
    cpu = torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    found = (event for event in events if (event.device_type() != cpu) == on_device and COLLECTIVE.search(event.name()))
    return sum(end - start for start, end in union((event.start_ns(), event.end_ns()) for event in found)) * 1e-9
