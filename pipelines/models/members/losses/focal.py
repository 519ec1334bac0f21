"""Cross-entropy, weighted by (1 - p)^gamma: less for what is already right (Lin et al. 2017, arXiv:1708.02002)."""

from typing import TYPE_CHECKING

from pipelines.models.member import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.models.tasks import Criterion


class Focal(Loss):
    """Cross-entropy, weighted by (1 - p)^gamma: less for what is already right (Lin et al. 2017, arXiv:1708.02002)."""

    name = "focal"
    tasks = ("language", "classification")

    gamma: float = 2.0
    """Exponent of the weight; 0 is cross-entropy."""

    def criterion(self) -> "Criterion":
        import torch
        from torch.nn import functional as F

        def focal(answers: "Tensor", targets: "Tensor") -> "Tensor":
            each = F.cross_entropy(answers, targets, reduction="none")
            return (each * (1 - torch.exp(-each)) ** self.gamma).sum()

        return focal
