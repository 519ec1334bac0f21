"""A rank that no agent watches: a thread of its own does."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.training.launchers.logs import write_outcome
from pipelines.training.launchers.reports import Report
from pipelines.training.launchers.watchdog.watchdog import Late, Watchdog
from pipelines.training.process.heartbeat import heartbeat
from storage.errors import Hung, ShardlineError

if TYPE_CHECKING:
    from pipelines.training.process.process_group import Ranks


@contextmanager
def watched(folder: Path, ranks: "Ranks", timeout: float | None) -> Iterator[None]:
    """Inside, this process ends with a report, a text on stderr and the exit code of `Hung` when its steps stop coming:
    its main thread, which is stuck, can't raise anything."""

    def end(text: str, late: list[Late]) -> None:
        error = Hung(f"{text}\nThe same command goes on from the last checkpoint.")
        try:  # the disk may be full, which may be why it hangs
            with suppress(OSError):
                print(f"shardline: {error}", file=sys.stderr, flush=True)
            write_outcome(folder, error)
            with suppress(OSError, ShardlineError):
                Report.of(ranks.rank, error).save(folder)
        finally:
            os._exit(Hung.exit_code)

    with heartbeat(folder, ranks.rank, ranks.world, ranks.rank), Watchdog(folder, timeout, end, only=os.getpid()):
        yield
