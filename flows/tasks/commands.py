"""A stage's command as a Prefect task: in a supervised process of its own, its lines in the flow run's log."""

import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from os import environ
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff
from prefect.utilities.urls import url_for

from flows.tasks import supervisor
from flows.tasks.steps import STEP, open_recipe, record, worth_a_retry
from pipelines.reproduce import status
from pipelines.reproduce.dvc_process import commands_path
from pipelines.reproduce.writer import exclusive
from pipelines.runtime.own_code import PIPELINE
from pipelines.workspace import Workspace
from storage.errors import Interrupted, ParamsError, ShardlineError

#: Seconds from SIGTERM to SIGKILL. Prefect gives a cancelled flow 30 s; a rank saves within a step.
GRACE = 25.0
_TAIL = 20  # lines that an error shows
_SIGNALS = range(129, 160)  # exit codes 128 + signal


class StageFailed(ShardlineError):
    """A stage's command ended with another exit code than 0."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_stage(recipe: str, stage: str, retries: int = 1, delay: float = 5.0) -> None:
    """Run one stage of a recipe by its command, and record it. `retries` after `delay`, 2 x `delay`, … seconds.

    Interrupted: a signal stopped it (the machine is taken away, say); it goes on where it was when it runs again.
    """
    status.clear_outs(open_recipe(recipe), stage)
    tries = run_command.with_options(retries=retries, retry_delay_seconds=exponential_backoff(delay))
    tries(recipe, stage)
    record(recipe, stage)


# Called directly, never submitted: so it runs in the main thread, where Prefect turns SIGTERM into an exception.
@task(name="run", task_run_name="run {stage}", retry_condition_fn=worth_a_retry, **STEP)
def run_command(recipe: str, stage: str) -> None:
    """Run a stage's command to its end. Cancelled, it takes the command and all that it started along."""
    ws = open_recipe(recipe)
    command = shlex.split(status.stages(ws)[stage])
    logger = get_run_logger()
    code, tail = supervised(command, ws.root, logger.info)
    explain(shlex.join(command), ws, code, tail)


@task(name="dvc repro", task_run_name="dvc repro {stage}", **STEP)
def run_by_dvc(recipe: str, stage: str) -> None:
    """Let DVC run and record a stage whose command isn't `shardline STAGE`: one that somebody added."""
    ws = open_recipe(recipe)
    arguments = ["repro", "--single-item", "--force", f"{PIPELINE}:{stage}"]
    logger, tail = get_run_logger(), deque[str](maxlen=_TAIL)

    def log(line: str) -> None:
        tail.append(line)
        logger.info(line)

    with exclusive(ws) as dvc:
        code = dvc.run(*arguments, log=log)
    explain(f"dvc {shlex.join(arguments)}", ws, code, list(tail))


def supervised(command: list[str], folder: Path, log: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run `command` in `folder`; its lines go to `log`. Returns its exit code and last lines. When an exception (a
    signal, as Prefect delivers it) ends the wait, the command is told, given GRACE seconds, and swept."""
    process = subprocess.Popen(
        [sys.executable, "-P", supervisor.__file__, str(GRACE), *command],
        cwd=folder, env=environ | command_environment(), start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=_TAIL)
    try:
        for line in process.stdout:
            tail.append(line.rstrip())
            log(tail[-1])
        return process.wait(), list(tail)
    finally:
        process.stdin.close()  # ends the supervisor, if it is still there
        for line in process.stdout:
            log(line.rstrip())
        process.stdout.close()
        process.wait()


def command_environment() -> dict[str, str]:
    """What a stage's command gets beside this process's environment. The MLflow run is tagged with the flow run that a
    person opens first: the outermost."""
    root = flow_run.get_root_flow_run_id() or flow_run.get_id()
    environment = {"PATH": commands_path(), "PYTHONUNBUFFERED": "1"}
    if root:
        environment["PREFECT__FLOW_RUN_ID"] = str(root)
        if url := url_for("flow-run", obj_id=str(root)):
            environment["SHARDLINE_FLOW_RUN_URL"] = url
    return environment


def explain(command: str, ws: Workspace, code: int, tail: list[str]) -> None:
    """Raise what an exit code other than 0 means."""
    if code == 0:
        return
    lines = "\n".join(f"  {line}" for line in tail)
    if code in _SIGNALS:
        raise Interrupted(
            f"`{command}` was stopped by signal {code - 128} in {ws.root}. What it saved is kept; it goes on from "
            f"there when it runs again. Its last lines:\n{lines}",
            code - 128,
        )
    message = f"`{command}` failed with exit code {code} in {ws.root}. Its last lines:\n{lines}"
    raise ParamsError(message) if code == ParamsError.exit_code else StageFailed(message, code)
