"""Where a rank computes, in which precision, and so that it repeats."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.params import Train
from pipelines.runtime.cores import cores
from pipelines.runtime.parent_death import AGENT_PID
from pipelines.streaming.gather.buffers import Allocate, allocate
from storage.digest import keyed_uint64
from storage.errors import ParamsError

ACCELERATORS = ("cuda", "mps", "xpu")
#: What narrows the devices that a process sees.
NARROWED_BY = {
    "cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
}


def available(kind: str) -> int:
    """How many devices of a kind this process can use."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def pick_device(name: str, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """The device of `train.device` for a rank of the `local_world` on this machine (0: nobody says how many); from now
    on the current one. Raises ParamsError when it is not there, or not for so many ranks."""
    device = device_of(name, local_rank, local_world)
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).set_device(device)
    return device


def device_of(name: str, local_rank: int, local_world: int) -> torch.device:
    """The device that `pick_device` picks."""
    if name == "auto":
        name = next((kind for kind in ACCELERATORS if available(kind)), "cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    first, ranks, visible = int(index or 0), max(local_rank + 1, local_world), available(kind)
    taken = device_index(first, local_rank, ranks, visible, apart=sees_its_own(kind))
    if taken is None:
        raise ParamsError(_too_few(name, kind, first, ranks, visible))
    return torch.device("mps") if kind == "mps" else torch.device(kind, taken)


def device_index(first: int, local_rank: int, ranks: int, visible: int, *, apart: bool) -> int | None:
    """Which of the devices that it sees a rank takes; None where `visible` are too few for the `ranks` of its machine,
    which each of them finds, so that none waits for another that has left.

    Where all ranks see the same devices, they take one each from `first` on. One that may see others than its
    neighbours (`apart`), and sees a single one, has been given that.
    """
    if apart and visible == 1 and first == 0:
        return 0
    return first + local_rank if first + ranks <= visible else None


def sees_its_own(kind: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a rank may see other devices than its neighbours do: a cluster's launcher shows each task its own, by a
    variable or by what the kernel lets it open. torchrun gives all ranks what it sees itself, unless a script between
    sets that variable."""
    if kind not in NARROWED_BY or AGENT_PID in environment:
        return False
    return "TORCHELASTIC_RUN_ID" not in environment or any(name in environment for name in NARROWED_BY[kind])


def _too_few(name: str, kind: str, first: int, ranks: int, visible: int) -> str:
    there = ", ".join(f"{available(k)} x {k}" for k in ("cpu", *ACCELERATORS) if available(k))
    narrowed = ", ".join(f"{by}={os.environ[by]}" for by in NARROWED_BY.get(kind, ()) if by in os.environ)
    last = f"{kind}:{first + ranks - 1}"
    text = f"train.device={name!r}: the {ranks} ranks of this machine need {kind}:{first} to {last}"
    if ranks == 1:
        text = f"train.device={name!r} needs {last}"
    text += f", but what this rank sees is {there}{f' ({narrowed})' if narrowed else ''}. "
    if ranks > 1 and visible > 1 and sees_its_own(kind):
        text += "Let what starts the ranks show each of them one device, or all of them all. "
    return text + "Set train.device to auto or cpu, or lower train.ranks."


@dataclass(frozen=True)
class Precision:
    """The type of the matrix products on a device; weights, losses and optimiser states stay float32."""

    device: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "Precision":
        """Of `train.precision`; auto takes bf16 where an accelerator has it, else fp32."""
        if name == "auto":
            has_bf16 = (device.type == "cuda" and torch.cuda.is_bf16_supported(False)) or device.type == "xpu"
            name = "bf16" if has_bf16 else "fp32"
        return cls(device.type, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name])

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device, dtype=self.dtype)


@contextmanager
def repeatable(train: Train, device: torch.device) -> Iterator[None]:
    """Inside: a fixed number of threads, and on the CPU (where it costs nothing) deterministic algorithms only.

    So the same machine gives the same bits again. The process's settings are put back at the end.
    """
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    debugging: Any = torch.utils.deterministic  # a module that types itself at run time
    fill = debugging.fill_uninitialized_memory
    here = int(os.environ.get("LOCAL_WORLD_SIZE", train.ranks))  # a launcher may start others than train.ranks
    torch.set_num_threads(train.threads or max(1, cores() // here))
    if device.type == "cpu":
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import torch's compiler: 2 s
        debugging.fill_uninitialized_memory = False  # a debugging aid that costs a pass over memory
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strict)
        debugging.fill_uninitialized_memory = fill


def pinned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Memory that the device reads by itself, while the host goes on."""
    array: npt.NDArray[np.uint8] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    return array


def host_memory(device: torch.device) -> Allocate:
    """What batches for `device` lie in: pinned memory where that is a GPU."""
    return pinned if device.type == "cuda" else allocate


def arrived(device: torch.device) -> Callable[[], None]:
    """What waits until the copies to `device` that have been started are done, but for nothing that is started later.
    Before, the memory that they read must not change: from pinned memory, a device copies when it gets there."""
    if device.type == "cpu":
        return lambda: None
    event = torch.Event(device)
    event.record()
    return event.synchronize


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step (dropout) a function of (seed, step, rank), so that resuming needs no RNG state.

    Seeds the generators of the CPU and of the accelerators in use. `torch.manual_seed` does so, too, but notes the call
    stack for every kind that isn't in use: 0.3 ms a step.
    """
    value = _seeds(seed, step // _AT_ONCE, rank)[step % _AT_ONCE]
    torch.default_generator.manual_seed(value)
    for module in (torch.cuda, torch.xpu):
        if module.is_initialized():
            module.manual_seed(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


#: Seeds are made so many steps at once: one by one, between two steps, each took 0.08 ms, most of it to get the code
#: for JSON and BLAKE3 back into the processor's caches.
_AT_ONCE = 256


@lru_cache(maxsize=4)
def _seeds(seed: int, block: int, rank: int) -> list[int]:
    return [keyed_uint64("step", seed, step, rank) for step in range(block * _AT_ONCE, (block + 1) * _AT_ONCE)]
