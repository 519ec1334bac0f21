"""How many answers a step asks for."""

import torch

from pipelines.models import Task
from pipelines.streaming import Batch
from pipelines.training.parallelism import Group

HOST = torch.device("cpu")


def global_targets(batch: Batch, task: Task, group: Group) -> int:
    """Targets of the *global* batch, the same on every rank.

    Where all of a sample's count it is arithmetic; else each rank that `owns_loss` (one for each part of the batch)
    counts its own, and one small all-reduce sums them up, so all ranks call it. That happens on the hosts, where
    batches come from, in `group.hosts`: a GPU that is still at work is not waited for. At least 1, so that a batch in
    which nothing counts is a step without a gradient.
    """
    if not task.counts_vary:
        return batch.size * task.targets_per_sample(batch.arrays)
    mine = task.counted(batch.arrays) if group.layout.owns_loss else 0
    return max(1, round(group.ranks.sum(mine, device=HOST, group=group.hosts)[0]))
