"""How many targets a global batch has: what its loss is divided by."""

import torch
from torch import Tensor

from pipelines.models import Task
from pipelines.models.tasks import IGNORED
from pipelines.streaming import Batch
from pipelines.training.ranks import Ranks


def count_targets(
    task: Task, batch: Batch, targets: Tensor, ranks: Ranks, device: torch.device, *, speaks: bool = True
) -> int:
    """Targets of the global batch that count, the same on every rank, at least 1; `targets` are this rank's.

    Arithmetic, unless they vary: then one small all-reduce, in which ranks with the same samples count only where one
    of them `speaks`. All ranks call it together.
    """
    if not task.counts_vary:
        return batch.size * task.targets_per_sample(batch.arrays)
    own = (targets != IGNORED).sum() if speaks else torch.zeros((), device=device)
    return max(1, int(ranks.sum(own, device=device)[0]))
