"""Absolute deviations."""

from typing import TYPE_CHECKING

from pipelines.models.member import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.models.tasks import Criterion


class Absolute(Loss):
    """Absolute deviations."""

    name = "absolute"
    tasks = ("regression",)

    def criterion(self) -> "Criterion":
        from torch.nn import functional as F

        def absolute(answers: "Tensor", targets: "Tensor") -> "Tensor":
            return F.l1_loss(answers, targets, reduction="sum")

        return absolute
