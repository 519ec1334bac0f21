"""One rank, in this process."""

from pathlib import Path

from pipelines.training.launchers.job import Job
from pipelines.training.launchers.watchdog.thread import watched
from pipelines.training.process.process_group import Ranks
from pipelines.training.worker import train_rank


class InProcess:
    def launch(self, job: Job, folder: Path) -> None:
        ranks = Ranks()
        with watched(folder, ranks, job.workspace.params.compute.hang_timeout_s):
            train_rank(job.workspace, ranks)
