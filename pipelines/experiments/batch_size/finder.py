"""Doubling, then bisection; each size in a fresh process."""

import json
import subprocess
import sys
from collections.abc import Callable

import psutil

from pipelines.console.progress import progress, say
from pipelines.console.tables import print_table
from pipelines.experiments.batch_size.trial import Trial
from pipelines.workspace import Workspace
from storage.errors import ShardlineError

SHARE = 0.8  # of the memory that is free now, on a CPU
FINE = 8  # the answer is exact to 1/FINE of it
_MIB = 1 << 20
Try = Callable[[int], Trial]


def find_batch(ws: Workspace, most: int, memory_mb: float | None = None) -> list[Trial]:
    """Try sizes up to `most` samples, or as many as the train split has, with the model, optimiser and device of `ws`;
    on a CPU within `memory_mb` (None: 0.8 of what is free). Prints a table and the setting to use. Raises
    ShardlineError where a trial fails for another reason than memory, or where even one sample doesn't fit."""
    limit = round(memory_mb * _MIB) if memory_mb else round(psutil.virtual_memory().available * SHARE)
    most = min(most, largest_batch(ws))
    with progress("find batch", None, "sizes") as advance:

        def attempt(size: int) -> Trial:
            advance(0, note=f"{size} samples")
            trial = _start(ws, size, limit)
            advance(1)
            return trial

        trials = search(attempt, most)
    _show(ws, trials)
    return trials


def largest_batch(ws: Workspace) -> int:
    """Samples of the train split: no batch has more, whatever its size is called."""
    from pipelines.training.session import aim, samples_in

    manifest = ws.zone("shards").manifest()
    return max(1, samples_in(manifest, "train", aim(ws.params, manifest)[1].sequence_len))


def search(attempt: Try, most: int) -> list[Trial]:
    """The trials, the smallest size first: doubled from 1 to the first that doesn't fit or `most`, then bisected until
    the largest that fits is known to 1/8."""
    trials = {1: attempt(1)}
    fits, fails = 1, most + 1
    while trials[fits].fits and fits < most:
        size = min(2 * fits, most)
        trials[size] = attempt(size)
        if not trials[size].fits:
            fails = size
            break
        fits = size
    while trials[fits].fits and fails <= most and fails - fits > max(1, fits // FINE):
        middle = (fits + fails) // 2
        trials[middle] = attempt(middle)
        fits, fails = (middle, fails) if trials[middle].fits else (fits, middle)
    return [trials[size] for size in sorted(trials)]


def _start(ws: Workspace, size: int, limit: int) -> Trial:
    command = [sys.executable, "-m", "pipelines.experiments.batch_size.trial", str(size), str(limit)]
    done = subprocess.run(command, cwd=ws.root, text=True, capture_output=True, check=False)
    if done.returncode == -9:  # the system's killer came first
        return Trial(size, False)
    if done.returncode:
        last = "\n  ".join(done.stderr.splitlines()[-12:])
        raise ShardlineError(f"A step with a batch of {size} failed, and not for want of memory:\n  {last}")
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


def _show(ws: Workspace, trials: list[Trial]) -> None:
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise ShardlineError("Not even one sample fits: take a smaller model, or train.parallel.shard on more devices.")
    rows = [
        [str(trial.size), f"{trial.samples_per_second:,.0f}", f"{trial.bytes / _MIB:,.0f}"]
        if trial.fits
        else [str(trial.size), "doesn't fit", "–"]
        for trial in trials
    ]
    columns = ["batch", "samples/s", "peak MiB"]
    print_table(columns, rows, right=columns)
    fastest = max(fitting, key=lambda trial: trial.samples_per_second)
    enough = next(t for t in fitting if t.samples_per_second >= 0.95 * fastest.samples_per_second)
    largest, ranks = fitting[-1], ws.params.train.ranks
    say(f"largest that fits: {largest.size} samples a rank; {enough.size} are as fast (within 5 %)")
    say(f"set stream.batch_size: {enough.size * ranks} for {ranks} rank{'s' * (ranks > 1)}, and train.accumulate: 1")
