"""How many processors there are for this process."""

import os


def cores() -> int:
    """Processors that this process may run on: its CPU affinity where the system has one (taskset, Slurm, a cpuset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
