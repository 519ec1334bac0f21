"""Loss scaling for fp16 on many ranks."""

import torch
import torch.distributed as dist


class SharedScaler(torch.amp.GradScaler):
    """torch's, with one more agreement: a gradient that overflowed on any rank makes all ranks skip the step.

    With shards, slices or stages a rank sees its own gradients only, and would go on alone.
    """

    def __init__(self, device: str, *, enabled: bool) -> None:
        super().__init__(device, enabled=enabled)
        self.scale(torch.zeros((), device=device))  # it makes its state at the first loss, which few stages see

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)
        if self.is_enabled() and dist.is_initialized():
            for found in self._found_inf_per_device(optimizer).values():
                anywhere = found.to(self._device)  # offloaded gradients lie on the host, the ranks speak by device
                dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
                found.copy_(anywhere)
