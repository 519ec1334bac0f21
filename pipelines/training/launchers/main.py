"""The entry point of a rank that a launcher started: `python -m pipelines.training.launchers.main FOLDER`."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from pipelines.runtime import gc_tuning
from pipelines.runtime.parent_death import AGENT_PID, die_with_parent
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.logs import collect_output
from pipelines.training.launchers.reports import Report, report_file
from pipelines.training.launchers.watchdog.stacks import answers
from pipelines.training.process.heartbeat import heartbeat
from storage.atomic import full_disk
from storage.errors import ShardlineError


def main(folder: Path) -> int:
    """Train as one of the job's ranks; an error is left as a report for the launcher. Returns the exit code."""
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    report_file(folder, local).unlink(missing_ok=True)  # of an earlier start
    gc_tuning.rest()
    log = collect_output(folder, rank)
    with answers(folder, rank), heartbeat(folder, rank, world, local):
        if AGENT_PID in os.environ:
            die_with_parent(int(os.environ[AGENT_PID]))
        try:
            from pipelines.training.process.process_group import Ranks

            Job.load(folder).do(Ranks.from_environment())
        except BaseException as error:
            error = full_disk(error) or error
            report = Report.of(rank, error)
            with suppress(OSError, ShardlineError):  # a full disk must not hide the error itself
                report.save(folder, local)
                print(*report.lines, sep="\n", file=log)
            return int(getattr(error, "exit_code", 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
