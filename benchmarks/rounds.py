"""Rounds: contenders in processes of their own, one at a time, in turns."""

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.setting import ROOT, Setting

LEAVE = 5.0  # seconds in which a contender may tidy up
TIMEOUT = 1800.0  # seconds for one answer: a contender that says nothing for so long hangs
_console = Console(stderr=True)


@dataclass(frozen=True)
class Entrant:
    """A contender that may be started: `contender` of `Setting.module(module)`, with each of `workers`."""

    name: str
    module: str
    contender: str = "stream"
    workers: tuple[int, ...] = (0,)
    job: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    check: bool = True  # whether it delivers just the bytes that the others deliver
    fresh: bool = False  # whether each epoch from the start is a new process' first


#: The peers of the streams, each at its best of 0 and 2 worker processes.
PEERS = (
    Entrant("litdata", "with_litdata", workers=(0, 2)),
    Entrant("MDS", "with_streaming", workers=(0, 2)),
    Entrant("WebDataset", "with_webdataset", workers=(0, 2)),
    Entrant("HF datasets", "with_datasets", workers=(0, 2)),
    Entrant("Grain", "with_grain", workers=(0, 2)),
)


@dataclass
class Readings:
    """What one entrant showed: `rates` a round, with `workers`; `tried` has the rate by workers in the warm-up."""

    workers: int = 0
    rates: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    tried: dict[int, float] = field(default_factory=dict)
    checked: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return median(self.rates)


class Process:
    """A contender's process, waiting for commands."""

    def __init__(self, entrant: Entrant, work: str, setting: Setting) -> None:
        self.name = entrant.name
        logs = setting.data / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{work}-{entrant.contender}-{entrant.name.replace(' ', '-')}.log"
        job = {"contender": entrant.contender, "work": work, "data": str(setting.data), "tiny": setting.tiny}
        command = [setting.python(entrant.module), "-m", setting.module(entrant.module)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps({**job, **entrant.job})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **entrant.env},
                start_new_session=True,  # so that its workers end with it
            )

    def answer(self) -> dict[str, Any]:
        """The next line that it says. Raises RuntimeError with the end of its log when it says nothing."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(TIMEOUT) else b""
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} gave no answer; the end of {self.log}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to `command`."""
        self.tell(**command)
        return self.answer()

    def tell(self, **command: Any) -> None:
        """Send `command` without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def leave(self) -> None:
        """Let it end by itself: peers that are killed leave shared memory and semaphores behind."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def end(self) -> None:
        """Wait for its end, a while, and kill what is left of it."""
        self.leave()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def started(entrants: Sequence[Entrant], work: str, setting: Setting) -> Iterator[dict[str, Process]]:
    """A ready process for each entrant, by name. They start together, and each makes its data the first time; all end
    with the context."""
    with ExitStack() as stack:
        processes = {}
        for entrant in entrants:
            process = processes[entrant.name] = Process(entrant, work, setting)
            stack.callback(process.end)
        for process in processes.values():
            stack.callback(process.leave)  # all of them, before the first is waited for
        for name, process in processes.items():
            say(f"{work}: waiting for {name} to be ready (the first time, its data is made)")
            process.answer()
        yield processes


def compete(
    ours: Entrant,
    peers: Sequence[Entrant],
    limits: Sequence[Entrant],
    work: str,
    setting: Setting,
    others: Sequence[Entrant] = (),
) -> dict[str, Readings]:
    """Readings by name: a warm-up of each, which chooses the workers, then rounds: ours, peer, ours, peer, … and each
    of the others. With `quick` peers and others are in the first round only, and those that need no choice go without a
    warm-up."""
    everybody = [*limits, ours, *peers, *others]
    readings = {entrant.name: Readings() for entrant in everybody}
    with started(everybody, work, setting) as processes:
        for entrant in everybody:
            readings[entrant.name].workers = entrant.workers[0]
            if entrant in (ours, *limits) or len(entrant.workers) > 1 or not setting.quick or setting.tiny:
                _warm(processes[entrant.name], entrant, readings[entrant.name], setting)
        _agree(readings)
        for turn in range(setting.rounds):
            say(f"{work}: round {turn + 1} of {setting.rounds}")
            whole = turn == 0 or not setting.quick  # a look has a minute
            turns = [each for peer in peers for each in (ours, peer)] if whole and peers else [ours]
            for entrant in [*limits, *turns, *(others if whole else ())]:
                found = readings[entrant.name]
                answer = processes[entrant.name].ask(workers=found.workers, seconds=setting.seconds)
                found.rates.append(answer["rate"])
                found.firsts.append(answer["first"])
    return readings


def _warm(process: Process, entrant: Entrant, readings: Readings, setting: Setting) -> None:
    say(f"{entrant.name}: warm-up")
    if entrant.check and (not setting.quick or setting.tiny):
        readings.checked = process.ask(run="check", workers=entrant.workers[0])
    for workers in entrant.workers:
        readings.tried[workers] = process.ask(workers=workers, seconds=setting.seconds)["rate"]
    readings.workers = max(readings.tried, key=readings.tried.__getitem__)


def _agree(readings: Mapping[str, Readings]) -> None:
    """All that were checked delivered the same samples, by count and by the sum of their bytes."""
    seen = {name: (r.checked["samples"], r.checked["total"]) for name, r in readings.items() if r.checked}
    if len(set(seen.values())) > 1:
        raise RuntimeError(f"the contenders did not deliver the same bytes: {seen}")


def say(what: str) -> None:
    """Tell a person what goes on, on standard error."""
    _console.print(f"[dim]{what}[/dim]", soft_wrap=True)
