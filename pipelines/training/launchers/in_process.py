"""One rank, in this process."""

from pathlib import Path

from pipelines.training.launchers.job import Job
from pipelines.training.launchers.watched import watched
from pipelines.training.rank import train_rank
from pipelines.training.ranks import Ranks


class InProcess:
    def launch(self, job: Job, folder: Path) -> None:
        ranks = Ranks()
        with watched(folder, ranks, job.workspace.params.compute.hang_timeout_s):
            train_rank(job.workspace, ranks)
