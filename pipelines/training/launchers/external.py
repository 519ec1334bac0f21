"""This process is one rank of several that somebody else started: srun, Kubeflow's operator, torchrun itself."""

import os
from pathlib import Path

from pipelines.training.launchers.job import Job
from pipelines.training.launchers.logs import collect_output
from pipelines.training.launchers.placement import GIVEN
from pipelines.training.launchers.watchdog.stacks import RECORDER
from pipelines.training.launchers.watchdog.thread import watched
from storage.errors import ParamsError


class External:
    def launch(self, job: Job, folder: Path) -> None:
        if missing := [name for name in GIVEN if name not in os.environ]:
            raise ParamsError(
                f"compute.launcher=external, but the environment has no {', '.join(missing)}: start it by torchrun, "
                "srun or an operator that sets them, or set compute.launcher to auto."
            )
        os.environ.setdefault(RECORDER, "2000")
        from pipelines.training.process.process_group import Ranks
        from pipelines.training.worker import train_rank

        ranks = Ranks.from_environment()
        collect_output(folder, ranks.rank, keep_terminal=True)
        with watched(folder, ranks, job.workspace.params.compute.hang_timeout_s):
            train_rank(job.workspace, ranks)
