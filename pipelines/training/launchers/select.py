"""Which launcher a job gets."""

import os

from pipelines.training.launchers.external import External
from pipelines.training.launchers.job import Job, Launcher
from pipelines.training.launchers.logs import job_folder
from pipelines.training.launchers.placement import started_by_others
from pipelines.training.launchers.ray.train import RayTrain
from pipelines.training.launchers.torchrun import Torchrun


def launch(job: Job) -> None:
    """Run `job` to its end by the launcher of compute.launcher. Raises as `Launcher` says."""
    with job_folder(job.workspace.state) as folder:
        choose(job).launch(job, folder)


def choose(job: Job) -> Launcher:
    """The launcher of `compute.launcher`. Each imports only what it needs."""
    name: str = job.workspace.params.compute.launcher
    if name == "auto":
        name = _fitting(job)
    if name == "external":
        return External()
    if name == "ray":
        return RayTrain()
    if name == "torchrun":
        return Torchrun()
    from pipelines.training.launchers.in_process import InProcess

    return InProcess()


def _fitting(job: Job) -> str:
    compute = job.workspace.params.compute
    if started_by_others():
        return "external"
    several = (
        job.ranks > 1 or compute.nodes > 1 or compute.elastic or compute.restarts > 0 or "PET_NNODES" in os.environ
    )
    return "torchrun" if several else "in_process"
