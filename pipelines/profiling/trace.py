"""Where the time of traced steps went, from the events of a Chrome trace (as torch.profiler writes it).

A step begins where the loop asks for a batch. Its time belongs to whatever the rank was doing: on the CPU the innermost
operator of the training thread, on an accelerator the kernel that ran. Time in collectives counts as network only where
no computing hides it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.training.communication.collectives import COLLECTIVE, Interval, union

BATCH = "shardline: next batch"  # the annotation around asking the stream
_PRODUCTS = re.compile(  # operators and kernels whose time grows faster than the numbers that they read
    r"aten::(\w*mm\b|addmv|mv\b|dot\b|_?conv|\w*convolution|\w*attention|mkldnn_|_?scaled_|linear$|bmm)|"
    r"gemm|cutlass|xmma|wgmma|implicit_conv|flash_(fwd|bwd)|fmha|cudnn",
    re.IGNORECASE,
)
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_CALL = 5e-6  # seconds: an operator whose own time is less is mere calling


@dataclass(frozen=True)
class Operator:
    """One name: its own seconds a step, calls a step, and the part that it belongs to."""

    name: str
    seconds: float
    calls: float
    part: str


@dataclass(frozen=True)
class Traced:
    """Seconds of each step by part (data, network, memory, compute; the rest is overhead), operators with the longest
    first, and the tensors' memory over time: [[seconds since the first step, bytes allocated since then], …]."""

    seconds: list[float]
    parts: list[dict[str, float]]
    operators: list[Operator]
    optimizer: float
    memory: list[Interval] = field(default_factory=list)


def read_trace(file: Path) -> Traced:
    """The steps of a trace file. Raises ValueError when it holds less than one whole step."""
    return analyse(json.loads(file.read_text())["traceEvents"])


def analyse(events: Sequence[Mapping[str, Any]]) -> Traced:
    """The same of its events (`ts` and `dur` in µs)."""
    begins = sorted((event["ts"], event["tid"]) for event in events if _is(event, BATCH))
    if len(begins) < 2:
        raise ValueError(f"the trace holds {max(0, len(begins) - 1)} whole steps; give it two batches at least")
    thread, bounds = begins[0][1], [ts * 1e-6 for ts, _ in begins]
    spans = [_Span.of(call, event) for call, event in enumerate(events) if event.get("ph") == "X" and "dur" in event]
    spans = [span for span in spans if span.end > bounds[0] and span.start < bounds[-1]]
    host = [span for span in spans if span.lane == thread and span.category in ("cpu_op", "user_annotation")]
    device = [span for span in spans if span.category in _ON_DEVICE]
    work = device or _innermost(host)
    operators = _operators(work, len(begins) - 1)
    names = {operator.name: operator.part for operator in operators}
    intervals: dict[str, list[Interval]] = defaultdict(list)
    for piece in work:
        intervals[names[piece.name]].append((piece.start, piece.end))
    busy = union(intervals["compute"] + intervals["memory"])
    collectives = [(s.start, s.end) for s in spans if COLLECTIVE.search(s.name)]
    covered = {
        "compute": union(intervals["compute"]),
        "memory": _without(union(intervals["memory"]), union(intervals["compute"])),
        "network": _without(union(collectives + intervals["network"]), busy),
        "data": _without(union([(s.start, s.end) for s in host if s.name == BATCH]), busy),
    }
    covered["network"] = _without(covered["network"], covered["data"])
    steps = list(pairwise(bounds))
    parts = [{part: _within(found, *step) for part, found in covered.items()} for step in steps]
    for step, found in zip(steps, parts, strict=True):
        found["overhead"] = max(0.0, step[1] - step[0] - sum(found.values()))
    optimizer = union([(s.start, s.end) for s in host if s.name.startswith("Optimizer.step#")])
    whole = bounds[-1] - bounds[0]
    return Traced(
        [end - start for start, end in steps],
        parts,
        [operator for operator in operators if operator.part != "data"],
        sum(_within(optimizer, *step) for step in steps) / whole,
        _memory(events, bounds),
    )


@dataclass(frozen=True)
class _Span:
    start: float
    end: float
    name: str
    lane: Any
    category: str
    call: int
    """Pieces of the same call share it."""

    @classmethod
    def of(cls, call: int, event: Mapping[str, Any]) -> "_Span":
        start = event["ts"] * 1e-6
        end = start + event["dur"] * 1e-6
        return cls(start, end, event["name"], event.get("tid"), event.get("cat", ""), call)


def _is(event: Mapping[str, Any], name: str) -> bool:
    return event.get("ph") == "X" and event.get("name") == name and event.get("cat") == "user_annotation"


def _innermost(spans: Iterable[_Span]) -> list[_Span]:
    """Nested spans of one thread → pieces of time without overlap, each a piece of the innermost span then."""
    pieces: list[_Span] = []
    stack: list[_Span] = []
    at = 0.0

    def until(moment: float) -> None:
        nonlocal at
        if stack and moment > at:
            pieces.append(replace(stack[-1], start=at, end=min(moment, stack[-1].end)))
        at = max(at, moment)

    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        while stack and stack[-1].end <= span.start:
            until(stack[-1].end)
            stack.pop()
        until(span.start)
        stack.append(span)
    while stack:
        until(stack[-1].end)
        stack.pop()
    return pieces


def _operators(pieces: Iterable[_Span], steps: int) -> list[Operator]:
    """By name, with the longest first. The part depends on the median of the calls: some are cut off by the system."""
    own: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for piece in pieces:
        own[piece.name][piece.call] += piece.end - piece.start
    found = [
        Operator(name, sum(calls.values()) / steps, len(calls) / steps, _part(name, median(calls.values())))
        for name, calls in own.items()
    ]
    return sorted(found, key=lambda operator: -operator.seconds)


def _part(name: str, call: float) -> str:
    if name == BATCH:
        return "data"
    if COLLECTIVE.search(name):
        return "network"
    if _PRODUCTS.search(name):
        return "compute"
    computes = name.startswith("aten::") or "::" not in name
    wrapper = name.startswith(("autograd::", "torch::autograd", "Optimizer.", "DistributedDataParallel", "shardline"))
    return "memory" if computes and not wrapper and call >= _CALL else "overhead"


def _memory(events: Sequence[Mapping[str, Any]], bounds: Sequence[float]) -> list[Interval]:
    changes = sorted(
        (event["ts"] * 1e-6, event["args"]["Bytes"], event["args"]["Device Type"])
        for event in events
        if event.get("name") == "[memory]"
    )
    kind = max((kind for _, _, kind in changes), default=0)  # an accelerator's, where there is one
    total, points = 0, []
    for moment, change, of in changes:
        if of == kind and bounds[0] <= moment <= bounds[-1]:
            total += change
            points.append((moment - bounds[0], float(total)))
    return points


# -- intervals ---------------------------------------------------------------------------------------------------------


def _without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What of `intervals` lies outside `others`; both are unions."""
    left, place = [], 0
    for start, end in intervals:
        while place < len(others) and others[place][1] <= start:
            place += 1
        at, index = start, place
        while index < len(others) and others[index][0] < end:
            if others[index][0] > at:
                left.append((at, others[index][0]))
            at = max(at, others[index][1])
            index += 1
        if at < end:
            left.append((at, end))
    return left


def _within(intervals: Iterable[Interval], start: float, end: float) -> float:
    """Seconds of a union between two moments."""
    return sum(max(0.0, min(end, b) - max(start, a)) for a, b in intervals)
