"""Trainings by an entry point, one of them killed: python tests/support/trainer_runs.py ROOT… (folders of workspaces).

Of each ROOT, `killed` is cut off by SIGKILL in a process of its own and then goes on here, `stopped` by SIGTERM in this
one, and `whole` is not disturbed. Each leaves batches.jsonl: of every start, the batches that the trainer was given.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from support.training_samples import without_mlflow

from pipelines.streaming import Stream
from pipelines.training import train
from pipelines.workspace import Workspace
from storage.errors import Interrupted

KILLED_AT, STOPPED_AT = 8, 9  # batches handed out


def watch(file: Path, signum: int | None, at: int) -> None:
    """Note the batches of each stream in `file`, and send this process a signal when `at` of them are handed out."""
    original, start = Stream.__next__, []

    def handed_out(stream: Stream) -> Any:
        batch = original(stream)
        if stream.split == "train":
            start.append([batch.epoch, batch.step, batch.ids()])
            if signum is not None and len(start) == at:
                note()
                os.kill(os.getpid(), signum)
        return batch

    def note() -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(start) + "\n")

    Stream.__next__ = handed_out  # type: ignore[method-assign]
    try:
        os.chdir(file.parent)
        train(Workspace.open())
    finally:
        Stream.__next__ = original  # type: ignore[method-assign]
        if signum is None:
            note()


def kill_one(root: Path) -> None:
    """Train `killed` in a child until it is killed."""
    child = os.fork()
    if child == 0:
        watch(root / "killed" / "batches.jsonl", signal.SIGKILL, KILLED_AT)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main(roots: list[Path]) -> None:
    without_mlflow()
    for root in roots:
        entrypoint = str(Workspace.open(root / "whole").params.train.entrypoint)
        importlib.import_module(entrypoint.partition(":")[0])
    for root in roots:  # first, while there are no threads
        kill_one(root)
    for root in roots:
        try:
            watch(root / "stopped" / "batches.jsonl", signal.SIGTERM, STOPPED_AT)
        except Interrupted as error:
            print(f"{root.name}: exit code {error.exit_code}: {error}")
        for name in ("whole", "killed", "stopped"):
            watch(root / name / "batches.jsonl", None, 0)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
