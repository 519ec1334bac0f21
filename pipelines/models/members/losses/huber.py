"""Squared up to `delta` standard deviations, absolute beyond (Huber 1964)."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.models.member import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.models.tasks import Criterion


class Huber(Loss):
    """Squared up to `delta` standard deviations, absolute beyond (Huber 1964)."""

    name = "huber"
    tasks = ("regression",)

    delta: float = Field(1.0, gt=0)
    """Standard deviations up to which deviations are squared."""

    def criterion(self) -> "Criterion":
        from torch.nn import functional as F

        def huber(answers: "Tensor", targets: "Tensor") -> "Tensor":
            return F.huber_loss(answers, targets, reduction="sum", delta=self.delta)

        return huber
