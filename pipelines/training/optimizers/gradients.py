"""What is done to gradients before an optimiser sees them."""

from collections.abc import Iterable

from torch import Tensor, nn


def clip(parameters: Iterable[Tensor], limit: float | None, value: float | None = None) -> Tensor:
    """Cut each element of the gradients off at ±`value`, then scale them down to a norm of `limit` where it is larger.
    Returns the norm before both, a scalar tensor."""
    parameters = [p for p in parameters if p.grad is not None]
    norm = gradient_norm(parameters)
    if value is not None:
        nn.utils.clip_grad_value_(parameters, value)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm if value is None else gradient_norm(parameters))
    return norm


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar tensor."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
