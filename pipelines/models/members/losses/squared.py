"""Squared deviations."""

from typing import TYPE_CHECKING

from pipelines.models.member import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.models.tasks import Criterion


class Squared(Loss):
    """Squared deviations."""

    name = "squared"
    tasks = ("regression",)

    def criterion(self) -> "Criterion":
        from torch.nn import functional as F

        def squared(answers: "Tensor", targets: "Tensor") -> "Tensor":
            return F.mse_loss(answers, targets, reduction="sum")

        return squared
