"""One writer at a time in a recipe's folder: others wait, and say for whom.

Two files in `.shardline`, locked with flock, which the system frees when a holder dies; each notes who holds it.
- `stage.lock`: of the stage that runs. It notes the DVC process that started it, too, which may have more to run.
- `writer.lock`: of a job (`shardline repro`, a flow) from its beginning to its end, alone; of a stage that is no part
  of a job, shared with other such. A stage knows its job among its ancestors.
A job takes both and the outs in DVC's own table, or none of them, so that nobody who has one waits for another.
"""

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import TextIO

import psutil

from pipelines.console.progress import say
from pipelines.params import FILENAME, load_params
from pipelines.reproduce.code_dependencies import depend_on_code
from pipelines.reproduce.dvc_process import Dvc, written
from pipelines.reproduce.process_tree import STARTED_BY_DVC, ancestors, command_of, dvc_above, end_with
from pipelines.runtime.own_code import PIPELINE
from pipelines.workspace import Workspace
from storage.atomic import storage_errors
from storage.errors import ParamsError

JOB, STAGE = "writer.lock", "stage.lock"
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Writer:
    """A process that writes; known by its command line as well, since process ids are given again."""

    pid: int
    command: str
    since: str

    @classmethod
    def of(cls, process: psutil.Process) -> "Writer":
        return cls(process.pid, command_of(process), datetime.now().isoformat(" ", "seconds"))

    @property
    def alive(self) -> bool:
        try:
            return bool(self.command) and command_of(psutil.Process(self.pid)) == self.command
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        first, *rest = shlex.split(self.command)
        words = [Path(rest[0]).name, *rest[1:]] if rest and Path(first).name.startswith("python") else [first, *rest]
        command = shorten(shlex.join(words), 80, placeholder="…")
        return f"`{command}` (process {self.pid}, since {self.since})"


class Lock:
    """The open lock file: who holds it, and the note in it."""

    def __init__(self, file: Path) -> None:
        with storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handle: TextIO = file.open("a+")

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def take(self, above: set[int], *, shared: bool) -> str | None:
        """Who is at work, None when the lock is held now. Of those noted, the processes `above` don't count."""
        taken = True
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        except OSError:  # a file system without locks, where nobody can be waited for
            return None
        others = [writer for writer in self.writers() if writer.pid not in above | {os.getpid()}]
        if taken and others and not shared:
            self.free()
        elif taken:
            return None
        return str(others[-1]) if others else "another run"

    def free(self) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def note(self, writers: list[Writer]) -> None:
        self._handle.truncate(0)
        self._handle.write(json.dumps([vars(writer) for writer in writers]))
        self._handle.flush()

    def writers(self) -> list[Writer]:
        """Those noted that are alive."""
        self._handle.seek(0)
        try:
            noted = [Writer(**entry) for entry in json.loads(self._handle.read() or "[]")]
        except (ValueError, TypeError):  # being written, or by another version
            return []
        return [writer for writer in noted if writer.alive]


@contextmanager
def stage_at_work(ws: Workspace, name: str, *, shared: bool = False) -> Iterator[None]:
    """Around a stage's command: it writes alone, and ends when the DVC process that started it does. `shared`: one of
    several processes that do the same stage together. Raises ParamsError at the end of a stage whose outcome will be
    recorded, but is of parameters that have changed meanwhile."""
    dvc = dvc_above()
    if dvc is not None:
        end_with(dvc)
    above = {process.pid for process in ancestors()}
    with Lock(ws.state / JOB) as job, Lock(ws.state / STAGE) as stage:
        cause = [writer for writer in job.writers() if writer.pid in above]  # the job that this is a part of
        cut_off = STARTED_BY_DVC in os.environ and dvc is None  # by srun, say: DVC is on another machine
        if not cause and not cut_off:
            _wait(ws, lambda: job.take(above, shared=True))
            cause = [Writer.of(dvc)] if dvc else []
            if dvc:
                _refuse_unseen_code(ws)
        _wait(ws, lambda: stage.take(above, shared=shared))
        stage.note([Writer.of(psutil.Process()), *cause])
        try:
            yield
            if cause:
                refuse_changed_params(ws, name)
        finally:
            stage.note(cause)


def refuse_changed_params(ws: Workspace, stage: str) -> None:
    """DVC records a stage with the parameters that stand in params.yaml by then, not with those that it ran with."""
    now = load_params(ws.root / FILENAME)
    sections = {str(entry).partition(".")[0] for entry in written(ws).get(stage, {}).get("params", [])}
    changed = sorted(name for name in sections if getattr(now, name, None) != getattr(ws.params, name, None))
    if changed:
        raise ParamsError(
            f"{ws.root / FILENAME}: {', '.join(changed)} changed while {stage} was at work. What it made is of the "
            "values from before, and is not recorded. Put them back, or run the same command again."
        )


def _refuse_unseen_code(ws: Workspace) -> None:
    """Under DVC alone nobody has looked into the imports before. What DVC isn't told of now it would not miss later."""
    if changes := depend_on_code(ws):
        raise ParamsError(
            f"{ws.root / PIPELINE} did not list all of your own code that the stages run, so DVC would not see when it "
            f"changes. It does now: {'; '.join(changes)}. Nothing has run; run the same command again."
        )


_jobs: dict[Path, tuple[Dvc, int]] = {}


@contextmanager
def exclusive(ws: Workspace) -> Iterator[Dvc]:
    """Around a job: nobody else writes in the recipe's folder meanwhile. May be nested within a process. Gives the
    job's DVC."""
    if ws.root in _jobs:
        with _nested(ws.root) as dvc:
            yield dvc
        return
    me = Writer.of(psutil.Process())
    above = {process.pid for process in ancestors()}
    with Lock(ws.state / JOB) as job, Lock(ws.state / STAGE) as stage, Dvc(ws, str(me)) as dvc:
        _wait(ws, lambda: _all_taken(job, stage, dvc, above))
        stage.free()  # for the job's own stages
        job.note([me])
        for change in depend_on_code(ws):  # before DVC looks
            say(f"{ws.root / PIPELINE}: {change}")
        _jobs[ws.root] = dvc, 1
        try:
            yield dvc
        finally:
            del _jobs[ws.root]
            job.note([])


@contextmanager
def _nested(root: Path) -> Iterator[Dvc]:
    dvc, depth = _jobs[root]
    _jobs[root] = dvc, depth + 1
    try:
        yield dvc
    finally:
        dvc, depth = _jobs[root]
        _jobs[root] = dvc, depth - 1


def _all_taken(job: Lock, stage: Lock, dvc: Dvc, above: set[int]) -> str | None:
    """Who is at work; None when all is taken."""
    if who := stage.take(above, shared=False):
        return who
    if who := job.take(above, shared=False):
        stage.free()
        return who
    if who := dvc.hold():
        stage.free()
        job.free()
    return who


def _wait(ws: Workspace, who_is_there: Callable[[], str | None]) -> None:
    told = None
    while who := who_is_there():
        if who != told:
            say(f"{ws.root}: {who} is at work here; waiting for it.")
            told = who
        time.sleep(POLL)
