"""A capture of some steps of the real training: first by the clock alone, then under torch.profiler.

The loop, the session and the stream are those of `shardline train`. The workspace's outs and state are not: they lie in
a folder that is deleted, so nothing that a training left is read or written.

python -m pipelines.profiling.capture FOLDER     is one of several ranks; FOLDER holds window.json
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from pydantic import BaseModel

from pipelines.params import Params
from pipelines.params.train.checkpoints import Checkpoints
from pipelines.profiling.flops import more_formulas
from pipelines.runtime.parent_death import die_with_parent
from pipelines.streaming import Batch, Stream
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.workspace import Workspace

TRACE, FOUND = "trace.json", "found.json"
SETTING = "window.json"
_NEVER = 10**9  # steps
_FEWEST, _MOST = 10, 500  # steps of it
_TRACED = 10  # steps under the profiler, at most


@dataclass(frozen=True)
class Scratch(Workspace):
    """A workspace that reads the zones of the real one, and writes to `scratch`."""

    scratch: Path = Path()

    @property
    def state(self) -> Path:
        return self.scratch

    @property
    def model(self) -> Path:
        return self.scratch / "model"


@dataclass(frozen=True)
class Capture:
    """Which steps: `warm_up` of them uncounted, then `steps` by the clock (None: about `seconds` of them)."""

    root: Path
    project: Path
    params: Params
    folder: Path
    warm_up: int = 10
    steps: int | None = None
    seconds: float = 5.0

    def save(self) -> None:
        values = {"root": str(self.root), "project": str(self.project)}
        values |= {name: getattr(self, name) for name in ("warm_up", "steps", "seconds")}
        (self.folder / SETTING).write_text(json.dumps(values | {"params": self.params.model_dump(mode="json")}))

    @classmethod
    def load(cls, folder: Path) -> "Capture":
        values = json.loads((folder / SETTING).read_text())
        params = Params.model_validate_json(json.dumps(values["params"]))
        root, project = Path(values["root"]), Path(values["project"])
        return cls(root, project, params, folder, values["warm_up"], values["steps"], values["seconds"])

    @property
    def workspace(self) -> Workspace:
        """Without checkpoints but for what an interruption leaves in the scratch folder, wherever the real ones lie."""
        checkpoints = Checkpoints(url=str(self.folder / "checkpoints"))
        train = self.params.train.model_copy(update={"checkpoint_every": _NEVER, "checkpoints": checkpoints})
        stream = self.params.stream.model_copy(update={"batch_ramp": None})  # the size that most steps have
        params = self.params.model_copy(update={"train": train, "stream": stream})
        return Scratch(self.root, self.project, params, self.folder / "state")


class Clocked(BaseModel):
    """What each step took by the clock, in seconds."""

    seconds: list[float] = []
    waits: list[float] = []
    """Of these, waiting for data."""
    stolen: list[float] = []
    """Of these, ready to compute but without a core, because others had them all. 0 where the system doesn't tell."""


class Setup(BaseModel):
    """What the window was run with."""

    precision: str
    device: str
    threads: int
    parameters: int


class Found(BaseModel):
    """What a window showed on rank 0, beside the trace."""

    setup: Setup
    steps: Clocked = Clocked()
    stream: dict[str, float] = {}
    """Share of the window that the stream's threads spent on fetch, plan, decode and gather."""
    first_batch: float = 0.0
    """Seconds to the first batch."""
    flops: float = 0.0
    peaks: dict[str, float] = {}
    resident: int = 0
    """Bytes of this process in memory at the end; on an accelerator, the most that tensors took."""


class _Clock:
    """The reporter of a capture: notes what each step took, and tells the profiler."""

    def __init__(self) -> None:
        self.steps = Clocked()
        self._queued = _queued()

    def step(self, seconds: float, waited: float, work: int) -> None:
        self.steps.seconds.append(seconds)
        self.steps.waits.append(waited)
        before, self._queued = self._queued, _queued()
        self.steps.stolen.append(self._queued - before)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # whatever else the loop reports


def _queued() -> float:
    """Seconds that this thread has waited for a core since it began (Linux: schedstats); 0 where nobody counts them."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0


class _Watched:
    """A stream whose batches are asked for within an annotation of the trace."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[Batch]:
        from torch.profiler import record_function

        from pipelines.profiling.trace import BATCH

        batches = iter(self._stream)
        while True:
            with record_function(BATCH):
                batch = next(batches)
            yield batch


def watch(capture: Capture, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
    """Run the window as one of its ranks; rank 0 leaves trace.json and found.json. Raises ShardlineError."""
    from pipelines.training.process.process_group import Ranks
    from pipelines.training.session import open_session

    ranks = Ranks(rank, world, local_rank, world)
    with stop_on_signals(StopRequest()) as stop, open_session(capture.workspace, ranks) as session:
        session.data.validates, session.learner.gradient_sync.sampler = False, None
        run = _Runner(session, stop)
        found = Found(
            setup=Setup(
                precision=str(session.learner.precision.dtype).removeprefix("torch."), device=str(session.group.device),
                threads=_threads(), parameters=session.learner.parameters,
            )
        )  # fmt: skip
        began = perf_counter()
        run.steps(1)
        found.first_batch = perf_counter() - began
        warm = run.steps(max(1, capture.warm_up - 1))
        steps = capture.steps or session.group.ranks.share(_enough(capture.seconds, median(warm.steps.seconds)))
        before = session.data.stream.meter.snapshot()
        found.steps = run.steps(steps).steps
        shares = (session.data.stream.meter.snapshot() - before).shares()
        found.stream = {part: shares[part] for part in ("fetch", "plan", "decode", "gather")}
        _trace(run, min(steps, _TRACED), capture.folder / TRACE if ranks.leads else None)
        found.resident = _resident(session.group.device)
        found.flops = _flops(session)
        ranks.wait()  # the ranks measure the peak side by side, as they compute
        found.peaks = _peaks(session.group.device, capture.seconds / 8)
        if ranks.leads:
            (capture.folder / FOUND).write_text(found.model_dump_json())
        ranks.wait()


class _Runner:
    """Runs the session's loop for some steps more."""

    def __init__(self, session: Any, stop: Any) -> None:
        self.session, self.stop = session, stop
        session.goal.steps = 0

    def steps(self, count: int) -> _Clock:
        from pipelines.training.loop import fit

        clock: Any = _Clock()
        self.session.goal.steps += count
        fit(self.session, clock, self.stop)
        return clock  # type: ignore[no-any-return]


def _enough(seconds: float, step: float) -> int:
    return min(_MOST, max(_FEWEST, round(seconds / step)))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _trace(run: _Runner, steps: int, file: Path | None) -> None:
    """Some steps, and one more that marks the end of the last, under the profiler."""
    from torch.profiler import ProfilerActivity, profile

    session: Any = run.session
    kinds, device = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}, session.group.device.type
    activities = [ProfilerActivity.CPU, *([kinds[device]] if device in kinds else [])]
    stream = session.data.stream
    session.data.stream = _Watched(stream)
    with profile(activities=activities, profile_memory=True, record_shapes=False, acc_events=True) as profiler:
        run.steps(steps + 1)
    session.data.stream = stream
    if file is not None:
        profiler.export_chrome_trace(str(file))


def _flops(session: Any) -> float:
    """Operations of a step on this rank: forward and backward of one more batch, counted operator by operator."""
    from torch.utils.flop_counter import FlopCounterMode

    from pipelines.training.loop import forward_backward

    batch = max(islice(session.data.stream, 2), key=lambda batch: batch.size)  # an epoch's last one may be short
    with FlopCounterMode(display=False, custom_mapping=more_formulas()) as counter:
        forward_backward(session, batch)
    return float(counter.get_total_flops())


def _peaks(device: Any, seconds: float) -> dict[str, float]:
    """Rates of matrix products in each precision, with the threads that the training has."""
    from pipelines.machine.rates import DTYPES, matmul_rate

    return {str(dtype).removeprefix("torch."): matmul_rate(device, dtype, seconds) for dtype in DTYPES}


def _resident(device: Any) -> int:
    import psutil
    import torch

    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    watch(Capture.load(Path(sys.argv[1])), *(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
