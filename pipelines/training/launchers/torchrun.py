"""Ranks started by torchrun (torch.distributed.run), on this machine and others, with nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.console.progress import say
from pipelines.params import Params
from pipelines.runtime.loopback import require_loopback
from pipelines.runtime.process_sweep import MARK, sweep
from pipelines.training.launchers.agent import FAILURE, HUNG
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.logs import last_lines
from pipelines.training.launchers.placement import place
from pipelines.training.launchers.reports import Report, read_reports
from pipelines.training.process.heartbeat import signs
from pipelines.training.process.out_of_memory import advice, kernel_kills
from pipelines.training.process.signals import StopRequest, stop_on_signals
from storage.errors import Hung, Interrupted, OutOfMemory, ShardlineError

AGAIN = "The same command goes on from the last checkpoint."


class Torchrun:
    """The agent runs in a session of its own, so that a Ctrl-C reaches the ranks once, through `launch`."""

    def launch(self, job: Job, folder: Path) -> None:
        job.save(folder)
        placement = place(job.workspace.params, job.ranks)  # errors before anything is started
        if placement.meeting is None:
            require_loopback("Its ranks speak through it; train.ranks: 1 needs none.")
        else:
            say(f"meeting the other machines at {placement.meeting.endpoint}; logs of this one: {folder}")
        command = [sys.executable, "-m", "pipelines.training.launchers.agent", str(folder), str(os.getpid())]
        environment = os.environ | {MARK: str(folder)}
        kills = kernel_kills()
        process: subprocess.Popen[bytes] | None = None
        forward = _Forward()
        try:
            with stop_on_signals(forward):
                process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
                forward.to(process)
                code = process.wait()
        finally:
            sweep(str(folder))
            if process is not None:
                process.wait()
        if error := explain(folder, code, forward.signum, job.workspace.params, kills):
            raise error


def explain(
    folder: Path, code: int, signum: int | None, params: Params, kills: int | None = None
) -> ShardlineError | None:
    """What an agent's exit code and its ranks' reports mean: None for success. The first error that is ours counts,
    since the others (lost connections) mostly follow from it. `kills`: `kernel_kills` at the start."""
    if code == 0:
        return None
    first, reports = _read(folder / FAILURE), read_reports(folder)
    hung = _read(folder / HUNG)
    if hung and first.get("process") in hung["processes"]:
        return Hung(f"{hung['message']}\n{AGAIN}")
    if code == Hung.exit_code:
        return Hung(f"Training hung; which ranks did was said above, and could not be written to {folder}. {AGAIN}")
    if ours := [report for report in reports if report.ours]:
        return min(ours, key=lambda report: report.kind == Interrupted.__name__).error()
    if signum is not None:
        return Interrupted(
            f"Training stopped by {signal.Signals(signum).name} before this start did a step; checkpoints from before "
            "are kept. The same command goes on from there.",
            signum,
        )
    if reason := first.get("rendezvous"):
        return ShardlineError(_did_not_meet(str(reason), params))
    if not first:
        return ShardlineError(
            f"torchrun's agent ended with exit code {code}, and its ranks with it. {AGAIN} Logs: {folder}"
        )
    report = next((report for report in reports if report.rank == first["rank"]), None)
    return _failed(folder, first["rank"], first["exit_code"], report, params, kills)


def _failed(
    folder: Path, rank: int, code: int, report: Report | None, params: Params, kills: int | None
) -> ShardlineError:
    now = kernel_kills()
    killed = code == -signal.SIGKILL
    by_kernel = killed and kills is not None and now is not None and now > kills
    world = next((f" of {sign.world}" for sign in signs(folder) if sign.rank == rank), "")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    text = f"Rank {rank}{world} {how}"
    if by_kernel:
        text += f": the machine, or this job's control group, has no memory left. {advice(params)}"
    elif killed:
        text += f". Killed so, it has most often run out of memory. {advice(params)}"
    else:
        text += "."
    lines = report.lines if report else last_lines(folder, rank)
    text += f" {AGAIN}" + ("\nIts last lines:\n  " + "\n  ".join(lines) if lines else "") + f"\nLogs: {folder}"
    return OutOfMemory(text) if by_kernel else ShardlineError(text)


def _did_not_meet(reason: str, params: Params) -> str:
    compute = params.compute
    return (
        f"The machines of this job did not meet ({reason}; compute.rendezvous={compute.rendezvous!r}, "
        f"compute.nodes={compute.nodes}, compute.rendezvous_timeout_s={compute.rendezvous_timeout_s}). Is the command "
        "running on all of them, with the same parameters and data, and can they reach that address and port? "
        "Where the host has several networks, name an address of the one that joins them."
    )


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.is_file() else {}


class _Forward(StopRequest):
    """Hands the first signal on to a process, once it is there."""

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None

    def to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self.signum is not None:
            process.send_signal(self.signum)

    def note(self, signum: int, frame: FrameType | None) -> None:
        first = self.signum is None
        super().note(signum, frame)
        if first and self._process is not None:
            self._process.send_signal(signum)
