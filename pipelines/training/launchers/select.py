"""Which launcher a job gets."""

from pipelines.training.launchers.job import Job, Launcher


def launch(job: Job) -> None:
    """Run `job` to its end: one rank in this process, several by torchrun. Raises as `Launcher` says."""
    launcher: Launcher
    if job.ranks == 1:
        from pipelines.training.launchers.in_process import InProcess

        launcher = InProcess()
    else:
        from pipelines.training.launchers.torchrun import Torchrun

        launcher = Torchrun()
    launcher.launch(job)
