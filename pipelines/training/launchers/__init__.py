"""What starts the ranks, behind one Protocol: in this process, by torchrun; a cluster's launcher fits in as well."""

from pipelines.training.launchers.job import Job, Launcher
from pipelines.training.launchers.select import launch

__all__ = ["Job", "Launcher", "launch"]
