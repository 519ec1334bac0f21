"""One rank, in this process."""

from pipelines.training.launchers.job import Job
from pipelines.training.rank import train_rank
from pipelines.training.ranks import Ranks


class InProcess:
    def launch(self, job: Job) -> None:
        assert job.ranks == 1
        train_rank(job.workspace, Ranks())
