"""Some steps with one batch size, in a process of its own.

`python -m pipelines.experiments.batch_size.trial SIZE BYTES`

Its last line is the Trial as JSON. A size that doesn't fit can't take the searching process with it, and leaves no
fragments for the next one.
"""

import json
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from pipelines.params import Params, Train
from pipelines.training.process.signals import StopRequest
from pipelines.workspace import Aside, Workspace

SECONDS = 1.0  # of measuring, once the first steps are done
_WARM = 2
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Trial:
    """`size` samples a step of one rank; `bytes`: the most memory in use, of the device or of this process on CPU."""

    size: int
    fits: bool
    samples_per_second: float = 0.0
    bytes: int = 0


def on_one_rank(params: Params, size: int) -> Params:
    """The recipe's training with batches of `size` on one rank, without what a step doesn't need."""
    train = params.train.model_dump() | {
        "ranks": 1, "accumulate": 1, "parallel": {}, "checkpoints": {}, "communication": {},
        "patience": None, "entrypoint": None, "args": {},
    }  # fmt: skip
    widest = {"pad_multiple": params.stream.seq_len}  # documents: every batch as wide as the widest can be
    stream = params.stream.model_copy(update={"batch_size": size, "batch_ramp": None, "lanes": None, **widest})
    return params.model_copy(update={"train": Train.model_validate(train), "stream": stream})


def run(ws: Workspace, size: int, limit: int | None) -> Trial:
    """Steps on the first batch of `size`; on the CPU with at most `limit` bytes of memory for it."""
    from pipelines.training.loop import forward_backward
    from pipelines.training.process.process_group import Ranks
    from pipelines.training.session import open_session
    from pipelines.training.step import take_step

    with tempfile.TemporaryDirectory() as folder:
        aside = Aside(Path(folder), ws.project, on_one_rank(ws.params, size), ws)
        with open_session(aside, Ranks()) as session:
            if limit is not None and session.group.device.type == "cpu":
                resource.setrlimit(resource.RLIMIT_DATA, (_reserved() + limit, resource.RLIM_INFINITY))
            batch = next(session.data.stream)
            step = partial(take_step, session, partial(forward_backward, session, batch), StopRequest())
            for _ in range(_WARM):
                step()
            began, steps = perf_counter(), 0
            while steps < 1 or perf_counter() - began < SECONDS:
                step()  # it ends with a sum on the host, so the device is done
                steps += 1
            rate = steps * batch.size / (perf_counter() - began)
            return Trial(size, True, rate, _peak(session.group.device.type))


def _reserved() -> int:
    """Bytes that this process has asked for already, used or not, as the limit counts them."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")), 0)


def _peak(kind: str) -> int:
    import torch

    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if kind == "xpu":
        return int(torch.xpu.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(size: int, limit: int | None) -> None:
    try:
        trial = run(Workspace.open(), size, limit)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        trial = Trial(size, False)
    print(json.dumps(asdict(trial)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
