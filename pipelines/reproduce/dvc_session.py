"""DVC in a process of its own, which keeps foreign DVC commands out of a recipe as long as a job is at work there.

python -m pipelines.reproduce.dvc_session FOLDER COMMANDS ANSWERS JOB OUT…     two pipes by number, the job's name,
                                                                               outs to guard

A command is a line of JSON, an answer one or more; `dvc_process.py` is the other side. `hold` enters the
outs into DVC's own tables of who reads and writes what (.dvc/tmp/rwlock), as read. So `dvc repro` of others is refused
by DVC before it removes anything, and `dvc exp run` before it stashes what git tracks, params.yaml among it;
`dvc status` works, and commands of this process pass: DVC knows them by process id and command line.

When COMMANDS closes, its owner has ended or was killed: what runs gets SIGTERM, GRACE seconds, and SIGKILL.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from logging import Filter, LogRecord, getLogger
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from pipelines.reproduce.process_tree import GRACE, kill_below, stop_stage

PATIENCE = 600.0  # seconds that a command waits for others, such as `dvc status`, to let go of what it needs
_AGAIN = 1.0  # seconds between two tries
_STATUS = re.compile(r"exited with (-?\d+)$")
_INTERRUPTED = 252  # DVC's exit code after SIGINT


class Failures(Filter):
    """What DVC says of a command that failed: the stage's exit code, and who holds what it needs. That isn't printed:
    it comes with the advice to remove DVC's table by hand, and the command is tried again."""

    def __init__(self) -> None:
        super().__init__()
        self.status: int | None = None
        self.busy: str | None = None

    def filter(self, record: LogRecord) -> bool:
        from dvc.lock import LockError
        from dvc.stage.exceptions import StageCmdFailedError

        error = record.exc_info[1] if record.exc_info else None
        while error is not None:
            if isinstance(error, StageCmdFailedError) and (found := _STATUS.search(str(error))):
                self.status = int(found[1])
            if isinstance(error, LockError):
                self.busy = str(error)
            error = error.__cause__
        return self.busy is None

    @classmethod
    @contextmanager
    def watched(cls) -> Iterator["Failures"]:
        """Inside, what DVC logs is looked through."""
        failures, handlers = cls(), getLogger("dvc").handlers
        for handler in handlers:
            handler.addFilter(failures)
        try:
            yield failures
        finally:
            for handler in handlers:
                handler.removeFilter(failures)


class Session:
    """Answers commands one after the other."""

    def __init__(self, folder: str, answers: int, outs: list[str]) -> None:
        import dvc.rwlock
        from dvc.repo import Repo

        dvc.rwlock.psutil = SimpleNamespace(pid_exists=runs)
        self._repo = Repo(folder)
        self._outs, self._marker = outs, str(Path(folder) / ".shardline" / "writer.lock")
        self._held = ExitStack()
        self._answers = os.fdopen(answers, "w", buffering=1)
        self._writing = threading.Lock()
        self.running = False

    def answer(self, **about: Any) -> None:
        with self._writing, suppress(OSError):  # the owner may have left
            self._answers.write(json.dumps(about) + "\n")
            self._answers.flush()

    def hold(self) -> None:
        """Answer with who is at work already, None when the outs are held."""
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo.experiments.utils import get_exp_rwlock
        from dvc.rwlock import rwlock

        repo, hard = self._repo, self._repo.config["core"].get("hardlink_lock", False)
        busy = error = None
        with ExitStack() as stack:
            try:
                stack.enter_context(get_exp_rwlock(repo, reads=["workspace"]))
                stack.enter_context(rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), self._outs, [self._marker], hard))
                busy = self._experiment()
            except LockError as who:
                busy = holders(str(who))
            except DvcException as reason:
                error = str(reason)
            if not (busy or error):
                self._held = stack.pop_all()
        self.answer(**({"error": error} if error else {"busy": busy}))

    def _experiment(self) -> str | None:
        """The `dvc exp run` that is at work in the project's own folder, if one is."""
        import psutil
        from dvc.repo.experiments.utils import EXEC_PID_DIR, EXEC_TMP_DIR

        file = Path(self._repo.tmp_dir or "", EXEC_TMP_DIR, EXEC_PID_DIR, "workspace", "workspace.json")
        try:
            process = psutil.Process(json.loads(file.read_text())["pid"])
            words = process.cmdline()
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return f"`dvc exp run` (process {process.pid})" if "exp" in words else None

    def release(self) -> None:
        self._held.close()
        self.answer()

    def close(self) -> None:
        """Let go of what is held."""
        self.running = False
        self._held.close()

    def dvc(self, arguments: list[str], catch: bool) -> None:
        """Answer with the exit code: a failed stage's own where there is one. `catch`: lines that it prints are
        answers before that, else they go to this process's own output."""
        self.running = True
        with self._caught() if catch else nullcontext():
            about = self._patiently(arguments)
        self.running = False
        self.answer(**about)

    def _patiently(self, arguments: list[str]) -> dict[str, Any]:
        """The exit code, and who was in the way up to the last try."""
        from dvc.cli import main

        end, told = time.monotonic() + PATIENCE, ""
        while True:
            with Failures.watched() as failures:
                code = main(["--wait-for-lock", *arguments])
            if code == 0 or failures.busy is None or time.monotonic() > end:
                break
            if (who := holders(failures.busy)) != told:
                told = who
                self.answer(waiting=who)
            time.sleep(_AGAIN)
        if code and failures.status is not None:
            code = failures.status if failures.status > 0 else 128 - failures.status
        code = 128 + signal.SIGINT if code == _INTERRUPTED else code
        return {"code": code, "busy": holders(failures.busy) if code and failures.busy else None}

    @contextmanager
    def _caught(self) -> Iterator[None]:
        threads, kept = [], [os.dup(1), os.dup(2)]
        for number, name in ((1, "out"), (2, "err")):
            source, sink = os.pipe()
            os.dup2(sink, number)
            os.close(sink)
            threads.append(threading.Thread(target=self._pass_on, args=(source, name)))
            threads[-1].start()
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            kill_below()  # what a stage left behind holds the pipes open
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            for thread in threads:
                thread.join()

    def _pass_on(self, source: int, name: str) -> None:
        with os.fdopen(source, errors="replace") as lines:
            for line in lines:
                self.answer(**{name: line.rstrip("\n")})


def runs(pid: int) -> bool:
    """Whether a process runs. DVC asks whether there is one, and where nobody reaps (a container without an init), one
    that was killed would keep what it held for ever."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # somebody else's
        return True


def holders(busy: str) -> str:
    """Of DVC's message the processes that hold what a command needs."""
    found = [f"{command} (process {pid})" for pid, command in re.findall(r"\(PID (\d+)\): (.*)", busy)]
    return ", ".join(found) or "another DVC command"


def watch(commands: int, queue: "SimpleQueue[str | None]", session: Session) -> None:
    """Put each command into the queue; when the owner has left, end what runs."""
    with os.fdopen(commands) as lines:
        for line in lines:
            queue.put(line)
    queue.put(None)
    if session.running:
        if not stop_stage(os.getpid(), signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)
        kill_below()
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, commands: str, answers: str, job: str, *outs: str) -> int:
    for pipe in (commands, answers):
        os.set_inheritable(int(pipe), False)
    from dvc.exceptions import DvcException

    try:
        session = Session(folder, int(answers), list(outs))
    except DvcException as error:  # no project of DVC's, say
        os.write(int(answers), json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    sys.argv = [job]  # how DVC names this process to others
    queue: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=watch, args=(int(commands), queue, session), daemon=True).start()
    try:
        while (line := queue.get()) is not None:
            command = json.loads(line)
            getattr(session, command.pop("do"))(**command)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
