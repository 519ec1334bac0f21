"""No process of a job is left behind, not even one that has lost its parent: each has the job's mark."""

import os
from contextlib import suppress

import psutil

MARK = "SHARDLINE_JOB"  # in the environment of every process of a job


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
