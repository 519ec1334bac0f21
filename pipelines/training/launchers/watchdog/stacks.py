"""Where ranks are: their Python stacks and torch's flight recorder, on demand, and what the stacks tell.

A rank that `answers` writes its stacks on SIGUSR1, out of a signal handler in C, so even when it is stuck in a library.
On SIGUSR2 a thread of it writes the flight recorder: the collectives that it has started, as JSON.
"""

import faulthandler
import os
import re
import signal
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STACKS, FLIGHT = "stacks-{}.txt", "flight-{}.json"
#: torch's own name: how many collectives the recorder remembers. It needs to be set before torch is imported.
RECORDER = "TORCH_FR_BUFFER_SIZE"
_STDLIB = sysconfig.get_path("stdlib")
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)$')
#: A rank whose innermost frames are in here waits for others: in a collective, or in the backward pass, which has some.
_WAITING = re.compile(r"torch/distributed/|torch/autograd/|torch/_ops|training/process/process_group\.py")


@contextmanager
def answers(folder: Path, rank: int) -> Iterator[None]:
    """Inside, this process writes its stacks and its flight recorder when it is asked to, and its stacks when it
    crashes. To be entered in the main thread, before any other starts: SIGUSR2 must be blocked in all of them, or it
    ends the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    threading.Thread(target=_record, args=(folder, rank), name="flight-recorder", daemon=True).start()
    with (folder / STACKS.format(rank)).open("a") as file:
        faulthandler.enable(file)
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            faulthandler.disable()


def _record(folder: Path, rank: int) -> None:
    while True:
        signal.sigwait({signal.SIGUSR2})
        with suppress(OSError):  # the disk may be full, and may have room the next time
            write_flight(folder, rank)


def write_flight(folder: Path, rank: int) -> Path | None:
    """torch's flight recorder, where it keeps one (`RECORDER` set, and collectives done)."""
    from torch._C import _distributed_c10d

    dump = getattr(_distributed_c10d, "_dump_fr_trace_json", None)
    if dump is None:
        return None
    file, temporary = folder / FLIGHT.format(rank), folder / f".{FLIGHT.format(rank)}"
    temporary.write_bytes(dump())
    temporary.rename(file)
    return file


@dataclass(frozen=True)
class Place:
    """Where a rank's main thread is; `waits`: for other ranks, as far as one can tell."""

    frame: str
    waits: bool


def read_place(dump: str) -> Place | None:
    """Out of the newest dump of `faulthandler` in a file's text; None without one."""
    threads = [[match for line in block if (match := _FRAME.match(line))] for block in _blocks(dump)]
    main = [frames for frames in threads if frames and frames[-1]["function"] in ("_run_module_as_main", "<module>")]
    if not main:
        return None
    frames = main[-1]
    own = next((frame for frame in frames if not _library(frame["file"])), frames[0])
    waits = any(_WAITING.search(frame["file"]) for frame in frames[:6])
    return Place(f"{own['function']} ({os.path.basename(own['file'])}:{own['line']})", waits)


def _library(file: str) -> bool:
    """Whether a frame is Python's or an installed package's, so that it says little to people."""
    return file.startswith((_STDLIB, "<")) or "site-packages" in file


def _blocks(dump: str) -> list[list[str]]:
    """The threads of a dump, each as its lines."""
    blocks: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            blocks.append([])
        elif blocks:
            blocks[-1].append(line)
    return blocks


def ask(pid: int) -> None:
    """Ask a rank for its stacks and its flight recorder."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGUSR2)
