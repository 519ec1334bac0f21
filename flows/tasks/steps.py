"""What the flows share: opening a recipe, recording with DVC, which failures are worth a retry, running by hand."""

import functools
import inspect
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import typer
from prefect import Flow, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.tasks import exponential_backoff

from flows.tasks.privacy import mask_logs
from pipelines.reproduce import status
from pipelines.reproduce.repro import open_recipe
from storage.errors import DataError, DigestError, FormatError, ParamsError, ShardlineError
from storage.redact import masked_traceback

__all__ = ["DVC", "RETRY", "STEP", "by_hand", "open_recipe", "record", "worth_a_retry"]

mask_logs()  # before a flow can say anything

#: The tag of tasks that call DVC: `prefect deploy` limits it to one at a time, since DVC locks its project.
DVC = "shardline-dvc"

#: Nothing is cached or stored by Prefect: DVC does that. Names, versions and counts travel, never data.
STEP: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


async def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the same work may succeed when it is tried again: sources, stores and processes fail now and then; data
    that breaks its contract and parameters that are wrong stay so."""
    error = await state.aresult(raise_on_failure=False)
    return not isinstance(error, ParamsError | DataError | FormatError | DigestError)


#: Three tries, the second after 2 s, the third after 4 s more.
RETRY: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_condition_fn": worth_a_retry,
}


@task(name="record", task_run_name="record {stage}", tags={DVC}, **STEP, **RETRY)
def record(recipe: str, stage: str) -> None:
    """Write a stage's outcome to dvc.lock, as `dvc repro` would."""
    ws = open_recipe(recipe)
    status.record(ws, stage)
    get_run_logger().info("%s: recorded in %s", stage, ws.root / "dvc.lock")


def by_hand(flow: Flow[..., Any]) -> NoReturn:
    """Run a flow from the command line, its parameters as options; our own errors without a traceback. Prefect's
    temporary server serves it where no PREFECT_API_URL is set, and ends with it, SIGTERM included."""
    signal.signal(signal.SIGTERM, _leave)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @functools.wraps(flow.fn)
    def run(**parameters: Any) -> Any:
        open_recipe(parameters["recipe"])  # says what is wrong with it, before a server starts for that
        return flow(**parameters)

    app.command(help=inspect.getdoc(flow.fn))(run)
    try:
        app()
    except ShardlineError as error:
        print(f"{flow.name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{flow.name}: interrupted. What was finished is kept.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # a fault: Prefect has logged it; this is for who reads stderr alone
        print(masked_traceback(error), file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)
