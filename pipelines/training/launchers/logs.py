"""A job's folder: the logs and reports of its ranks on this machine, and how it ended.

    .shardline/logs/<date>-<host>-<pid>/rank-0.log …    what each rank wrote
                                       report-0.json …  why a rank stopped (reports.py), by its number on this machine
                                       stacks-0.txt …   where it was, when it crashed or hung
                                       outcome.json     done, preempted, hung, out_of_memory or failed; exit code, error
                    latest                              → the newest of them

The last KEPT of a machine are kept. Ranks that something else has started have a folder each.
"""

import io
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from storage.atomic import write_atomically
from storage.errors import Hung, Interrupted, OutOfMemory, ShardlineError

KEPT = 10
OUTCOME = "outcome.json"
LAST_LINES = 20
_START = "=== rank"


@contextmanager
def job_folder(state: Path) -> Iterator[Path]:
    """A fresh folder in `state`/logs; at the end, outcome.json says how the job went."""
    parent, host = state / "logs", socket.gethostname()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = parent / f"{stamp}-{host}-{os.getpid()}"
    while folder.exists():  # two trainings of this process within a second
        folder = folder.with_name(f"{folder.name}+")
    folder.mkdir(parents=True)
    _prune(parent, host)
    _point(parent / "latest", folder)
    try:
        yield folder
    except BaseException as error:
        write_outcome(folder, error)
        raise
    write_outcome(folder, None)


def outcome_of(error: BaseException) -> str:
    """What outcome.json calls it: preempted means that the state is saved and the same command goes on."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "preempted"
    return "hung" if isinstance(error, Hung) else "out_of_memory" if isinstance(error, OutOfMemory) else "failed"


def write_outcome(folder: Path, error: BaseException | None) -> None:
    """Write outcome.json: how a job ended, None for well."""
    values = {
        "outcome": outcome_of(error) if error else "done",
        "exit_code": getattr(error, "exit_code", 1) if error else 0,
        "error": str(error) if error else None,
        "at": time.time(),
    }
    with suppress(OSError, ShardlineError):  # a full disk must not hide the error itself
        write_atomically(folder / OUTCOME, (json.dumps(values, indent=2) + "\n").encode())


def _prune(parent: Path, host: str) -> None:
    """Remove the oldest folders of this machine; those of others on a shared disk are theirs, and so is one in use."""
    of_this_one = re.compile(rf"\d{{8}}-\d{{6}}-{re.escape(host)}-\d+\+*")  # not of node-1, where this is node
    own = sorted(path for path in parent.iterdir() if of_this_one.fullmatch(path.name))
    kept = KEPT * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for folder in [path for path in own if (path / OUTCOME).is_file() or not _in_use(path)][:-kept]:
        shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    pid = folder.name.rstrip("+").rpartition("-")[2]
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _point(link: Path, folder: Path) -> None:
    with suppress(OSError):  # a convenience; not every file system has links
        temporary = link.with_name(f".{link.name}-{os.getpid()}")
        temporary.symlink_to(folder.name)
        temporary.replace(link)


def collect_output(folder: Path, rank: int, *, keep_terminal: bool = False) -> TextIO:
    """From now on, what this process writes goes to rank-N.log; of rank 0, or with `keep_terminal`, also to where it
    went before. Returns the log, for what is not meant for the terminal."""
    file = (folder / f"rank-{rank}.log").open("a", buffering=1, errors="replace")
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{_START} {rank} of {os.environ.get('WORLD_SIZE', 1)} starts, process {os.getpid()}, {now}", file=file)
    if rank == 0 or keep_terminal:
        sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        return file
    for stream in (sys.stdout, sys.stderr):  # the descriptors, so that what C++ says is in the log as well
        stream.flush()
        os.dup2(file.fileno(), stream.fileno())
    return file


class _Tee(io.TextIOBase):
    """A terminal's stream whose lines also go to a file (without the redrawing of progress bars)."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding

    def write(self, text: str) -> int:
        if "\r" not in text and "\x1b" not in text:
            with suppress(OSError):  # a full disk: what is said of it must be heard, and training goes on
                self._file.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    def writable(self) -> bool:
        return True


class Follower:
    """Prints what a rank has written since the last call, where the rank can't: its terminal is elsewhere."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file, self._read = folder / f"rank-{rank}.log", 0

    def __call__(self) -> None:
        if not self._file.is_file():
            return
        with self._file.open(errors="replace") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for line in lines:
            if not line.startswith(_START):
                print(line, end="", flush=True)


def last_lines(folder: Path, rank: int) -> list[str]:
    """The end of a rank's log, after its crash's stacks where it left any."""
    files = [folder / f"stacks-{rank}.txt", folder / f"rank-{rank}.log"]
    lines = [line for file in files if file.is_file() for line in file.read_text(errors="replace").splitlines()]
    return lines[-LAST_LINES:]
