"""Signs of life of a training rank, for whoever watches it (watchdog/watchdog.py): one small file a rank.

`beat(step)` costs a microsecond, so the loop gives one after every step; a training script of one's own may do so, too.
"""

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from os import getpid
from pathlib import Path

from pipelines.params import Compute

#: rank, world, process, step (-1: nothing to wait for), seconds of the machine's monotonic clock at the last sign.
_RECORD = struct.Struct("=iiiqd")
RESTING = -1


@dataclass(frozen=True)
class Sign:
    """What a rank's file says."""

    rank: int
    world: int
    pid: int
    step: int
    at: float


class _Heartbeat:
    def __init__(self, file: Path, rank: int, world: int) -> None:
        self._place = (rank, world, getpid())
        self.step: int | None = None
        file.write_bytes(_RECORD.pack(*self._place, RESTING, time.monotonic()))
        with file.open("r+b") as handle:
            self._map = mmap.mmap(handle.fileno(), _RECORD.size)

    def beat(self, step: int) -> None:
        if step != RESTING:
            self.step = step
        _RECORD.pack_into(self._map, 0, *self._place, step, time.monotonic())

    def close(self) -> None:
        self.beat(RESTING)
        self._map.close()


_heartbeat: _Heartbeat | None = None


@contextmanager
def heartbeat(folder: Path | None, rank: int, world: int, local_rank: int) -> Iterator[None]:
    """Inside, `beat` leaves signs in `folder` (None: nowhere)."""
    global _heartbeat
    if folder is None:
        yield
        return
    _heartbeat = _Heartbeat(folder / f"heartbeat-{local_rank}", rank, world)
    try:
        yield
    finally:
        _heartbeat.close()
        _heartbeat = None


def beat(step: int) -> None:
    """This rank lives and has done `step` steps. From the first sign on, it is expected to give more."""
    if _heartbeat is not None:
        _heartbeat.beat(step)


def rest() -> None:
    """No steps are to be expected any more (or for a long while, until the next beat)."""
    beat(RESTING)


def last_step() -> int | None:
    """The steps done at the last beat, where there was one."""
    return _heartbeat.step if _heartbeat is not None else None


def signs(folder: Path) -> list[Sign]:
    """Of all ranks in `folder`, by rank."""
    found = []
    for file in folder.glob("heartbeat-*"):
        with suppress(OSError, struct.error):
            found.append(Sign(*_RECORD.unpack(file.read_bytes())))
    return sorted(found, key=lambda sign: sign.rank)


def collective_timeout(compute: Compute) -> timedelta | None:
    """After which a collective fails by itself: a machine that is gone without a word. The watchdog, which knows more
    to say, comes first. None: torch's own (gloo 30, NCCL 10 minutes)."""
    timeout = compute.hang_timeout_s
    return None if timeout is None else timedelta(seconds=2 * timeout + 30)
