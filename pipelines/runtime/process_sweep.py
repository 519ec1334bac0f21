"""No process of a job is left behind, not even one that has lost its parent: each has the job's mark.

python -m pipelines.runtime.process_sweep MARK FOLDER     the warden: waits for its standard input to close, then sweeps
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "SHARDLINE_JOB"  # in the environment of every process of a job
PATIENCE = 10.0  # seconds for a kill to show


def sweep(mark: str, folder: str | None = None, spare: int | None = None) -> None:
    """Kill what is left of a job, and what that starts meanwhile: every process with its mark in the environment, or
    with a file of `folder` open, but this one and `spare`. One that has ended shows neither, reaped or not."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        others = [process for process in psutil.process_iter() if process.pid not in (os.getpid(), spare)]
        left = [process for process in others if _marked(process, mark) or (folder and _holds(process, folder))]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.5)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # it has ended, or belongs to somebody else
        return False


def _holds(process: psutil.Process, folder: str) -> bool:
    """Whether a process has a file of `folder` open. Some of Ray's write their title over their environment."""
    try:
        return any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    except (psutil.Error, OSError):
        return False


@contextmanager
def swept(folder: Path) -> Iterator[None]:
    """Processes that are started inside have ended, and `folder` is gone, after it: also when this process is killed,
    since another one waits for that. For what can't be made to end with its parent, such as Ray's processes."""
    before, mark = os.environ.get(MARK), str(folder)
    warden = subprocess.Popen(
        [sys.executable, "-m", "pipelines.runtime.process_sweep", mark, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    os.environ[MARK] = mark
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(MARK)
        else:
            os.environ[MARK] = before
        assert warden.stdin is not None
        warden.stdin.close()
        warden.wait()


def main(mark: str, folder: str) -> None:
    owner = os.getppid()
    sys.stdin.read()
    sweep(mark, folder, spare=owner)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
