"""A job's DVC: one child process for all its DVC commands in a recipe's folder, see `dvc_session.py`."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import yaml

from pipelines.console.progress import say
from pipelines.reproduce.process_tree import GRACE, SESSION, stop_stage
from pipelines.runtime.own_code import PIPELINE
from pipelines.workspace import Workspace
from storage.errors import FormatError, ShardlineError

_ROOM = 1 << 20  # bytes that must be free for DVC to write its lock and its state
_OUTS = ("outs", "metrics", "plots")


class Dvc:
    """A context manager; the process starts with the first question. Its methods may be called from any thread."""

    def __init__(self, ws: Workspace, job: str) -> None:
        self._root, self._job = ws.root, job
        self._outs = [str(ws.root / path) for stage in written(ws).values() for path in outs(stage)]
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.RLock()

    def __enter__(self) -> "Dvc":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: at once when it does nothing, else as `dvc_session.watch` says."""
        if self._process is None:
            return
        with suppress(OSError):  # it ended before it read all
            self._commands.close()
        try:
            self._process.wait(GRACE + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._process = None

    def hold(self) -> str | None:
        """Keep foreign DVC commands away from the recipe's outs. Returns who is at work there already, else None."""
        return self._ask({"do": "hold"})["busy"]  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let them come."""
        self._ask({"do": "release"})

    def __call__(self, *arguments: str) -> str:
        """What a DVC command prints. Raises ShardlineError when it fails."""
        out: list[str] = []
        err: list[str] = []
        answer = self._ask({"do": "dvc", "arguments": arguments, "catch": True}, out.append, err.append)
        if answer["code"]:
            why = next((line.strip() for line in reversed(out + err) if line.strip()), "")
            if answer["busy"]:
                why = f"{answer['busy']} has held what it needs for too long"
            raise ShardlineError(
                f"`dvc {shlex.join(arguments)}` failed in {self._root} (exit code {answer['code']}): {why}. Run it by "
                "hand there to see more."
            )
        return "\n".join(out)

    def run(self, *arguments: str, log: Callable[[str], None] | None = None) -> int:
        """Run a DVC command whose lines go to `log`, or else where this process prints. Returns its exit code, that of
        the stage that failed where one did. SIGINT and SIGTERM reach the stage that runs, which saves and ends; DVC by
        itself leaves it running on SIGTERM."""
        with self._forwarding():
            answer = self._ask({"do": "dvc", "arguments": arguments, "catch": log is not None}, log, log)
        if answer["busy"]:
            say(f"{self._root}: {answer['busy']} holds what `dvc {arguments[0]}` needs, for too long; try again later.")
        if answer["code"] and shutil.disk_usage(self._root).free < _ROOM:
            say(
                f"{self._root}: the disk is full. Free some space and run the same command again: it goes on from here."
            )
        return int(answer["code"])

    def _ask(
        self,
        command: dict[str, Any],
        out: Callable[[str], None] | None = None,
        err: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        with self._asking:
            if self._process is None:
                self._start()
            try:
                answer = self._converse(command, out, err)
            except BaseException:  # a signal, say: the rest of the answer must not be taken for the next one's
                self.close()
                raise
            if answer is None:
                assert self._process is not None
                code = self._process.wait()
                self.close()
                if command["do"] != "dvc":
                    raise ShardlineError(f"DVC's process ended with exit code {code} in {self._root}.")
                return {"code": code if code > 0 else 128 - code, "busy": None}
            if "error" in answer:
                raise ShardlineError(_mend(answer["error"]))
            return answer

    def _converse(
        self,
        command: dict[str, Any],
        out: Callable[[str], None] | None,
        err: Callable[[str], None] | None,
    ) -> dict[str, Any] | None:
        """The last answer to a command; None when the process ended before."""
        with suppress(OSError):
            self._commands.write(json.dumps(command) + "\n")
            self._commands.flush()
        for line in self._answers:
            answer: dict[str, Any] = json.loads(line)
            if "out" in answer or "err" in answer:
                listener = out if "out" in answer else err
                if listener:
                    listener(answer.get("out", answer.get("err", "")))
            elif "waiting" in answer:
                say(f"{self._root}: {answer['waiting']} is at work here; waiting for it.")
            else:
                return answer
        return None

    def _start(self) -> None:
        """In a session of its own, so that a Ctrl-C reaches the stage once, through `run`."""
        (its_commands, commands), (answers, its_answers) = os.pipe(), os.pipe()
        about = [str(self._root), str(its_commands), str(its_answers), self._job, *self._outs]
        self._process = subprocess.Popen(
            [sys.executable, "-m", SESSION, *about], cwd=self._root, start_new_session=True,
            env={**os.environ, "PATH": commands_path()}, pass_fds=(its_commands, its_answers),
        )  # fmt: skip
        os.close(its_commands)
        os.close(its_answers)
        self._commands: TextIO = os.fdopen(commands, "w")
        self._answers: TextIO = os.fdopen(answers)

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return

        def forward(signum: int, frame: FrameType | None) -> None:
            if self._process is not None and not stop_stage(self._process.pid, signum):
                self._process.send_signal(signum)

        before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def commands_path() -> str:
    """PATH with this environment's commands (shardline, dvc) first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def pipeline(ws: Workspace) -> dict[str, dict[str, Any]]:
    """The stages of the recipe's dvc.yaml as written. Raises FormatError for one that isn't one command."""
    file = ws.root / PIPELINE
    stages = (yaml.safe_load(file.read_text()) or {}).get("stages", {})
    for name, stage in stages.items():
        if not isinstance(stage.get("cmd"), str):
            raise FormatError(
                f"{file}: stage {name!r} is not one command (`foreach`, `matrix` or a list). The flows need "
                "one; `dvc repro` runs the others."
            )
    return dict(stages)


def written(ws: Workspace) -> dict[str, dict[str, Any]]:
    """The stages of the recipe's dvc.yaml that can be read; what is wrong with others, DVC says."""
    try:
        stages = (yaml.safe_load((ws.root / PIPELINE).read_text()) or {}).get("stages", {})
        return {name: stage for name, stage in stages.items() if isinstance(stage, dict)}
    except (OSError, yaml.YAMLError, AttributeError):
        return {}


def outs(stage: dict[str, Any]) -> dict[str, bool]:
    """Path → whether it persists, of a stage's outs, metrics and plots."""
    entries = [entry for section in _OUTS for entry in stage.get(section, [])]
    options = [entry if isinstance(entry, dict) else {entry: {}} for entry in entries]
    return {path: bool((about or {}).get("persist")) for entry in options for path, about in entry.items()}


def _mend(error: str) -> str:
    """DVC's error; of its table of readers and writers, which a kill can tear, with what to do about it."""
    torn = " A DVC command was killed while it wrote the file: when none is running, delete it."
    return f"DVC: {error.rstrip('.')}." + (torn if "RWLock-file" in error else "")
