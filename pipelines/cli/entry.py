"""The entry point: signals, and errors without a traceback where they are our own."""

import os
import signal
import sys
from types import FrameType

from pipelines.cli.app import app
from pipelines.runtime import gc_tuning
from storage.errors import Interrupted, ShardlineError
from storage.redact import masked_traceback


def main() -> None:
    """Run a command. An error that isn't our own is a fault: its traceback is shown, without passwords."""
    # OpenMP's waiting threads should sleep: they spin by default, and where another process computes too they take the
    # cores from those that they wait for (two trainings on two cores: steps of 2.3 s instead of 0.5 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    gc_tuning.rest()
    try:
        app()
    except ShardlineError as error:
        _leave(f"shardline: {error}", error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from storage.atomic import full_disk, not_writable

        if (known := full_disk(error) or not_writable(error)) is not None:
            _leave(f"shardline: {known}", known.exit_code)
        _leave(masked_traceback(error), 1)


def _stop(signum: int, frame: FrameType | None) -> None:
    word = "Interrupted" if signum == signal.SIGINT else "Terminated"
    raise Interrupted(f"{word}. What was finished is kept; the same command goes on from there.", signum)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
