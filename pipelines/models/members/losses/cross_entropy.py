"""Cross-entropy, in nats."""

from typing import TYPE_CHECKING

from pipelines.models.member import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.models.tasks import Criterion


class CrossEntropy(Loss):
    """Cross-entropy, in nats."""

    name = "cross_entropy"
    tasks = ("language", "classification")

    def criterion(self) -> "Criterion":
        from torch.nn import functional as F

        def cross_entropy(answers: "Tensor", targets: "Tensor") -> "Tensor":
            return F.cross_entropy(answers, targets, reduction="sum")

        return cross_entropy
