"""Notices ranks that take no step any more, says which and where they are, and ends them.

It runs where it is not caught in the same trap: in torchrun's agent, watching the ranks of its machine. Where there is
no agent (in-process, Ray, ranks that a cluster started), a thread of the rank itself watches that rank.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.training.launchers.watchdog.stacks import FLIGHT, STACKS, Place, ask, read_place, write_flight
from pipelines.training.process.heartbeat import RESTING, Sign, signs

ANSWER = 3.0  # seconds that a rank has to write where it is
LONGEST_TICK = 1.0  # seconds between looks
_MUTE = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class Late:
    """A rank that gives no signs: its last one, its process's state, and where it is (None: it doesn't answer)."""

    sign: Sign
    status: str
    place: Place | None

    @property
    def behind(self) -> bool:
        """Whether the others wait for it, not it for them."""
        return self.place is None or not self.place.waits

    def __str__(self) -> str:
        who = f"rank {self.sign.rank} (process {self.sign.pid}, {self.sign.step} steps done)"
        if self.place is not None:
            return f"{who} {'waits for others in' if self.place.waits else 'is in'} {self.place.frame}"
        stopped = " It was stopped: SIGSTOP, Ctrl-Z or a debugger." if self.status == psutil.STATUS_STOPPED else ""
        return f"{who} doesn't answer, state {self.status!r}.{stopped}"


class Watchdog:
    """Calls `act` with a text for people and the late ranks, once ranks in `folder` gave no sign for `timeout` seconds.

    Only the time during which the watchdog itself could look counts, so that a machine that slept is no hang.
    """

    def __init__(
        self, folder: Path, timeout: float | None, act: Callable[[str, list[Late]], None], *, only: int | None = None
    ) -> None:
        self._folder, self._timeout, self._act, self._only = folder, timeout, act, only
        self._idle: dict[tuple[int, int], tuple[float, float]] = {}
        self._stop = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._timeout is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        assert self._timeout is not None
        tick, last = min(LONGEST_TICK, self._timeout / 4), time.monotonic()
        while not self._stop.wait(tick):
            now = time.monotonic()
            elapsed, last = min(now - last, 2 * tick), now
            late = [sign for sign in living(self._folder, self._only) if self._idle_for(sign, elapsed) > self._timeout]
            if late and (self._only is None or any(sign.pid == self._only for sign in late)):
                self._hung()
                self._idle.clear()

    def _idle_for(self, sign: Sign, elapsed: float) -> float:
        """Watched seconds since the rank's last sign."""
        at, idle = self._idle.get(key := (sign.rank, sign.pid), (sign.at, 0.0))
        idle = 0.0 if sign.step == RESTING or at != sign.at else idle + elapsed
        self._idle[key] = (sign.at, idle)
        return idle

    def _hung(self) -> None:
        there = [sign for sign in living(self._folder, self._only) if sign.step != RESTING]
        if self._only is not None:  # the others have watchdogs of their own, unless they are stopped
            there = [sign for sign in there if self._only == sign.pid or _status(sign.pid) in _MUTE]
        late = _where(self._folder, there, self._only)
        self._act(self._describe(late), late)

    def _describe(self, late: list[Late]) -> str:
        behind = [rank for rank in late if rank.behind]
        ranks = ", ".join(str(rank.sign.rank) for rank in behind)
        step = max(rank.sign.step for rank in late) + 1
        first = (
            f"Training hung in step {step}: behind is rank {ranks} of {late[0].sign.world}."
            if len(behind) == 1
            else f"Training hung in step {step}: behind are ranks {ranks} of {late[0].sign.world}."
            if behind
            else f"Training hung in step {step}: the ranks of this machine wait for others (see their machines' logs), "
            "or a message was lost."
        )
        files = sorted(self._folder.glob(STACKS.format("*"))) + sorted(self._folder.glob(FLIGHT.format("*")))
        lines = [first, *(f"  {rank}" for rank in late)]
        lines.append(f"No step for {self._timeout:g} s (compute.hang_timeout_s), so the ranks were ended.")
        lines.append("Their stacks and torch's flight recorder: " + ", ".join(str(file) for file in files))
        return "\n".join(lines)


def living(folder: Path, only: int | None) -> list[Sign]:
    """The signs of ranks that still run; those that have died are torchrun's affair. Without `only` they are this
    process's children: the number of one that has died may have become another process's, which nobody must kill."""
    there = [sign for sign in signs(folder) if _status(sign.pid) not in ("gone", psutil.STATUS_ZOMBIE)]
    return there if only is not None else [sign for sign in there if _parent(sign.pid) == os.getpid()]


def _where(folder: Path, there: list[Sign], only: int | None) -> list[Late]:
    """Ask the ranks where they are; waits ANSWER seconds at most. The process `only` is this one, and looks itself."""
    files = {sign: folder / STACKS.format(sign.rank) for sign in there}
    before = {sign: _size(files[sign]) for sign in there}
    for sign in there:
        if sign.pid != only:
            ask(sign.pid)
            continue
        with suppress(OSError), files[sign].open("a") as file:  # the disk may be full
            faulthandler.dump_traceback(file, all_threads=True)
        with suppress(Exception):  # without a recorder, the stacks have to do
            write_flight(folder, sign.rank)
    end = time.monotonic() + ANSWER
    while time.monotonic() < end and not all(_place(files[sign], before[sign]) for sign in there):
        time.sleep(0.05)
    return [Late(sign, _status(sign.pid), _place(files[sign], before[sign])) for sign in there]


def _place(file: Path, before: int) -> Place | None:
    if not file.is_file():
        return None
    with file.open(errors="replace") as handle:
        handle.seek(before)
        return read_place(handle.read())


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return "gone"


def _parent(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None


def kill(late: list[Late]) -> None:
    """SIGKILL: a rank that is stopped, or stuck in the kernel, hears nothing else."""
    for rank in late:
        with suppress(ProcessLookupError):
            os.kill(rank.sign.pid, signal.SIGKILL)
