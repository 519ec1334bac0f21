"""When memory runs out: which settings to change."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.params import Params
from pipelines.training.process.heartbeat import last_step
from storage.errors import OutOfMemory

_SIGNS = re.compile(r"out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE)


@contextmanager
def memory_explained(params: Params) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if explained := out_of_memory(error, params, last_step()):
            raise explained from error
        raise


def out_of_memory(error: BaseException, params: Params, step: int | None = None) -> OutOfMemory | None:
    """What to tell a person about `error`; None when it is something else.

    torch raises OutOfMemoryError for CUDA and XPU, a plain RuntimeError for the CPU and MPS; Python and NumPy raise
    MemoryError.
    """
    if not isinstance(error, MemoryError | RuntimeError | OSError):
        return None
    text = str(error).strip()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and not _SIGNS.search(text):
        return None
    where = f"in step {step + 1} " if step is not None else ""
    if params.train.entrypoint is not None:
        where += _place(error)
    said = f" It said: {text.splitlines()[0][:300]}" if text else ""
    return OutOfMemory(f"Out of memory {where}({_kind(error)}). {advice(params)}{said}")


def _place(error: BaseException) -> str:
    """Where in a trainer of one's own: the innermost line that is neither a library's nor ours."""
    ours = Path(__file__).parents[3]
    libraries = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    others = ("<", str(ours / "pipelines"), str(ours / "storage"), *libraries)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f"in {Path(own[-1].filename).name}, line {own[-1].lineno} " if own else ""


def _kind(error: BaseException) -> str:
    cls = type(error)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def advice(params: Params) -> str:
    """The settings to change, the cheapest first."""
    ways = _of_the_loop(params) if params.train.entrypoint is None else _of_ones_own(params.train.entrypoint)
    ways.append(f"lower stream.batch_size (now {params.stream.batch_size})")
    ways.append(f"for text, lower stream.seq_len (now {params.stream.seq_len})")
    ways.append("lower compute.prefetch, compute.ahead_mb and compute.memory_mb, if the host's memory is what ran out")
    return "What helps, the cheapest first: " + "; ".join(ways) + "."


def _of_the_loop(params: Params) -> list[str]:
    train, parallel = params.train, params.train.parallel
    ways = [f"raise train.accumulate (now {train.accumulate}), which cuts the batch into pieces and keeps the result"]
    if not parallel.activation_checkpointing:
        ways.append("set train.parallel.activation_checkpointing, which computes activations twice, not keeps them")
    ways.append(
        f"raise train.parallel.shard (now {parallel.shard}) on more ranks, which shares out weights and optimiser"
    )
    if not parallel.offload:
        ways.append("set train.parallel.offload, which moves shards to the host")
    if train.precision in ("auto", "fp32"):
        ways.append("set train.precision to bf16, which halves the activations")
    return ways


def _of_ones_own(entrypoint: str) -> list[str]:
    return [
        f"let {entrypoint} take a batch in pieces, compute in fewer bits or shard its model (train.args is its own)"
    ]


def kernel_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for want of memory; None where it doesn't say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root = Path("/sys/fs/cgroup" if not controllers else "/sys/fs/cgroup/memory")
            for folder in (root / path.lstrip("/"), root):  # inside a container, the path may be the host's
                for name in ("memory.events", "memory.oom_control"):
                    if (file := folder / name).is_file():
                        counts = dict(row.split() for row in file.read_text().splitlines())
                        if "oom_kill" in counts:
                            return int(counts["oom_kill"])
    return None
