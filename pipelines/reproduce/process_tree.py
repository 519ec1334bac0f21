"""The processes above and below this one: which of them is DVC, and how a stage ends with it.

DVC starts a stage through a shell and doesn't end it when it is killed; the stage sees to that itself.
"""

import os
import shlex
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.console.progress import say

POLL = 0.3  # seconds
GRACE = 30.0  # seconds from SIGTERM to SIGKILL; training saves within a step
SESSION = "pipelines.reproduce.dvc_session"
STARTED_BY_DVC = "DVC_STAGE"  # in the environment of what DVC starts


def command_of(process: psutil.Process) -> str:
    """A process's command line; empty when it has ended or is somebody else's."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else shlex.join(process.cmdline())
    except psutil.Error:
        return ""


def ancestors() -> list[psutil.Process]:
    """The processes above this one, its parent first."""
    with suppress(psutil.Error):
        return psutil.Process().parents()
    return []


def dvc_above() -> psutil.Process | None:
    """The DVC process that started this stage, None for a stage that a person or a flow started."""
    if STARTED_BY_DVC not in os.environ:
        return None
    return next((process for process in ancestors() if _is_dvc(process)), None)


def _is_dvc(process: psutil.Process) -> bool:
    """`dvc …`, `python -m dvc …`, or a job's session with DVC."""
    try:
        words = process.cmdline()[:4]
    except psutil.Error:
        return False
    return any(word == SESSION or Path(word).name == "dvc" for word in words)


def end_with(process: psutil.Process) -> None:
    """Once `process` has ended, stop this one: SIGTERM, and after GRACE seconds SIGKILL for it and all below it."""
    command, pid = command_of(process), process.pid

    def watch() -> None:
        while command and command_of(process) == command:
            time.sleep(POLL)
        with suppress(OSError):  # whoever read it may have ended as well
            say(f"DVC (process {pid}), which started this stage, has ended: the stage ends, too.")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        kill_below()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with DVC", daemon=True).start()


def stop_stage(pid: int, signum: int) -> bool:
    """Hand a signal to the stage that runs below DVC's process `pid`: to the innermost shardline command, which tells
    its own ranks; to all processes of a stage of somebody's own. Returns whether a stage runs."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    ours = [process for process in below if any(Path(word).name == "shardline" for word in _words(process))]
    for process in ours[-1:] or below:
        with suppress(psutil.Error):  # it ended meanwhile
            process.send_signal(signum)
    return bool(below)


def kill_below() -> None:
    """Kill all processes below this one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[:2]
    except psutil.Error:
        return []
