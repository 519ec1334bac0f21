"""A contender's process: it waits for commands, runs its batches by the clock, and says what it counted.

One JSON object a line comes in, `{"run": "count", "workers": 0, "seconds": 5.0}`, and one goes out. The clock is the
same for every contender: it runs from the first batch of an epoch to its last one, so that what starting costs (of
worker processes, say) counts against nobody; `first` says it instead. Every batch is touched: the first and the last
element of every array are read. `check` is one whole epoch whose bytes are all summed up; `once` is one whole epoch,
timed from asking for it to its last batch, and to its end, when all is closed. NumPy only.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.works import Work, load

Batch = Mapping[str, Any]  # arrays or tensors [n, …] by name, or lists of n bytes objects
Epoch = Callable[[int], Iterable[Batch]]  # an epoch's batches, by that many worker processes

_later: list[Callable[[], object]] = []


def later(tidy: Callable[[], object]) -> None:
    """Call `tidy` once the command is answered, off the clock."""
    _later.append(tidy)


def serve(contenders: Mapping[str, Callable[[Work], Epoch]]) -> None:
    """Be the contender of `contenders` that the job, the JSON object in the first argument, names."""
    job = json.loads(sys.argv[1])

    def make() -> Callable[..., Any]:
        work = load(job["work"], Path(job["data"]), job["tiny"], job)
        epoch = contenders[job["contender"]](work)
        runs: dict[str, Callable[..., dict[str, float]]] = {"count": count, "check": check, "once": once}
        return lambda run="count", **command: runs[run](epoch, **command)

    listen(make)


def listen(make: Callable[[], Callable[..., Any]]) -> None:
    """Answer each command, a JSON object a line of arguments, with what the function that `make` makes returns."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    run = make()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers)
        while _later:
            _later.pop()()
        gc.collect()  # abandoned iterators end their workers here, off the clock


def count(epoch: Epoch, workers: int, seconds: float) -> dict[str, float]:
    """Epochs for `seconds`: samples and seconds after the first batches, samples/s, and seconds to the first batch."""
    samples = touched = 0
    elapsed = first = 0.0
    while elapsed < seconds:
        asked = time.perf_counter()
        batches = iter(epoch(workers))
        touched += touch(next(batches))
        start = time.perf_counter()
        first = first or start - asked
        before = samples
        for batch in batches:
            touched += touch(batch)
            samples += size(batch)
            if time.perf_counter() - start + elapsed >= seconds:
                break
        elapsed += time.perf_counter() - start
        if samples == before:
            raise RuntimeError("an epoch of one batch cannot be timed")
        _close(batches)
        del batches
    return {"samples": samples, "seconds": elapsed, "rate": samples / elapsed, "first": first, "touched": touched}


def check(epoch: Epoch, workers: int) -> dict[str, float]:
    """One whole epoch: samples, and the sum of all bytes."""
    samples = total = 0
    for batch in epoch(workers):
        samples += size(batch)
        total += sum(_sum(name, values) for name, values in batch.items())
    return {"samples": samples, "total": total}


def once(epoch: Epoch, workers: int) -> dict[str, float]:
    """One whole epoch: samples, and the seconds from asking for it to its first and its last batch, and to its end."""
    samples = touched = 0
    first = last = 0.0
    asked = time.perf_counter()
    for batch in epoch(workers):
        touched += touch(batch)
        last = time.perf_counter() - asked
        first = first or last
        samples += size(batch)
    ended = time.perf_counter() - asked
    return {"samples": samples, "seconds": last, "first": first, "ended": ended, "touched": touched}


def touch(batch: Batch) -> int:
    """Read the first and the last element of every array."""
    total = 0
    for values in batch.values():
        if isinstance(values, list):
            total += values[0][0] + values[-1][-1]
        else:
            array = np.asarray(values)
            total += int(array.item(0)) + int(array.item(array.size - 1))
    return total


def size(batch: Batch) -> int:
    """Samples in the batch: `label` has one each, and so has whatever a batch without labels holds."""
    return len(batch["label"] if "label" in batch else next(iter(batch.values())))


def _sum(name: str, values: Any) -> int:
    if isinstance(values, list):
        return sum(int(np.frombuffer(value, np.uint8).sum(dtype=np.int64)) for value in values)
    array = np.asarray(values)
    if name == "label":
        return int(array.sum(dtype=np.int64))
    return int(np.ascontiguousarray(array).view(np.uint8).sum(dtype=np.int64))


def _close(batches: Iterator[Batch]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
