"""Several ranks on this machine, by torchrun (torch.distributed.run), with nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from pipelines.training.launchers.agent import FAILURE
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.reports import Report, read_reports
from pipelines.training.signals import StopRequest, stop_on_signals
from storage.errors import Interrupted, ShardlineError

MARK = "SHARDLINE_JOB"  # in the environment of every process of a job
LAST_LINES = 20


class Torchrun:
    """The agent runs in a session of its own, so that a Ctrl-C reaches the ranks once, through `launch`."""

    def launch(self, job: Job) -> None:
        folder = _fresh_folder(job)
        job.save(folder)
        command = [
            sys.executable, "-m", "pipelines.training.launchers.agent", str(folder), str(job.ranks), str(os.getpid()),
        ]  # fmt: skip
        environment = os.environ | {MARK: str(folder)}
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
        error = explain(folder, code, job.ranks, forward.signum)
        if error is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        raise error


def explain(folder: Path, code: int, ranks: int, signum: int | None) -> ShardlineError | None:
    """What an agent's exit code and its ranks' reports mean: None for success. The first error that is ours counts,
    since the others (lost connections) mostly follow from it."""
    if code == 0:
        return None
    reports = read_reports(folder)
    ours = [report for report in reports if report.ours]
    if ours:
        return min(ours, key=lambda report: report.kind == Interrupted.__name__).error()
    if signum is not None:
        return Interrupted(
            f"Training stopped by {signal.Signals(signum).name} before this start did a step; checkpoints from before "
            "are kept. The same command goes on from there.",
            signum,
        )
    failure = folder / FAILURE
    if not failure.is_file():
        return ShardlineError(
            f"torchrun's agent ended with exit code {code}, and its ranks with it. The same command goes on from the "
            f"last checkpoint. Logs: {folder}"
        )
    first = json.loads(failure.read_text())
    report = next((r for r in reports if r.rank == first["rank"]), None)
    return ShardlineError(_failed(folder, first["rank"], first["exit_code"], ranks, report))


def _failed(folder: Path, rank: int, code: int, ranks: int, report: Report | None) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    hint = " Killed so, it has most often run out of memory: lower stream.batch_size, or raise train.accumulate."
    lines = report.lines if report else _tail(folder, rank)
    text = f"Rank {rank} of {ranks} {how}.{hint if code == -signal.SIGKILL else ''} "
    text += "The same command goes on from the last checkpoint."
    return text + ("\nIts last lines:\n  " + "\n  ".join(lines) if lines else "") + f"\nLogs: {folder}"


def _tail(folder: Path, rank: int) -> list[str]:
    files = [folder / f"crash-{rank}.txt", *sorted(folder.glob(f"logs/**/{rank}/stderr.log"))]
    lines = [line for file in files if file.is_file() for line in file.read_text(errors="replace").splitlines()]
    return lines[-LAST_LINES:]


def sweep(mark: str) -> None:
    """Kill what is left of a job, even what has lost its parent: every process with its mark in the environment."""
    left = [process for process in psutil.process_iter() if process.pid != os.getpid() and _marked(process, mark)]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # it has ended, or belongs to somebody else
        return False


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


def _fresh_folder(job: Job) -> Path:
    """A folder for the job's files, instead of those that earlier jobs left."""
    parent = job.workspace.state / "ranks"
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir(parents=True)
    return Path(tempfile.mkdtemp(dir=parent))
