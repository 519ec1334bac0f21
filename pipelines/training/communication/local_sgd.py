"""Copies that train by themselves and meet every so many steps: local SGD, and DiLoCo's outer optimiser.

Between meetings a copy steps on the gradients of its own samples. When they meet, the move of the copies' mean from
where they last met is taken times `outer_lr`, with Nesterov momentum; 1 and 0 make it the plain average. The inner
optimiser's state is averaged too: so after a meeting all copies are the same, which makes it the moment for
checkpoints and evaluations, and lets a training go on with another number of ranks.

Sources: Stich 2019, arXiv:1805.09767 (local SGD); Lin et al. 2020, arXiv:1808.07217 (post-local SGD); Douillard et al.
2023, arXiv:2311.08105 (DiLoCo, which leaves the inner states apart).
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.params import Communication
from pipelines.training.checkpoints.state import COUNTERS
from pipelines.training.communication.traffic import Traffic


class Meetings:
    """The meetings of one training. `momentum` by parameter name is all its state, float32, on the device."""

    def __init__(
        self,
        communication: Communication,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup,
        traffic: Traffic,
    ) -> None:
        self.communication, self.model, self.optimizer, self.group, self.traffic = (
            communication,
            model,
            optimizer,
            group,
            traffic,
        )
        self.momentum: dict[str, Tensor] = {}
        self._met: dict[str, Tensor] = {}
        self._remember()

    def is_local(self, step: int) -> bool:
        """Whether `step` (from 0) is taken by each copy for itself."""
        return step >= self.communication.local_after

    def due(self, done: int, steps: int) -> bool:
        """Whether the copies meet after `done` of `steps` steps."""
        since = done - self.communication.local_after
        return since > 0 and (since % self.communication.local_steps == 0 or done == steps)

    def together(self, done: int, steps: int) -> bool:
        """Whether the copies are the same after `done` steps."""
        return done <= self.communication.local_after or self.due(done, steps)

    def after(self, done: int, steps: int) -> None:
        """After `done` of `steps` steps: meet if it is time; where the copies part, note from where."""
        if self.due(done, steps):
            self.meet()
        elif done == self.communication.local_after:
            self._remember()

    @torch.no_grad()
    def meet(self) -> None:
        """Make all copies the same. Sends each weight and each number of the optimiser's state once."""
        for tensors in _alike([*self._weights().values(), *self._states()]):
            self._average(tensors)
        if self.communication.outer_lr != 1.0 or self.communication.outer_momentum:
            self._move()
        self._remember()

    def load(self, momentum: dict[str, Tensor]) -> None:
        """Go on from a checkpoint, whose weights and optimiser state are loaded already."""
        self.momentum = {name: value.to(self._met[name].device) for name, value in momentum.items()}
        self._remember()

    def _remember(self) -> None:
        if self.communication.outer_lr != 1.0 or self.communication.outer_momentum:
            self._met = {name: weight.detach().clone() for name, weight in self._weights().items()}

    def _move(self) -> None:
        """From where the copies last met, in the direction of their mean (torch.optim.SGD's Nesterov momentum)."""
        rate, keep = self.communication.outer_lr, self.communication.outer_momentum
        for name, weight in self._weights().items():
            before = self._met[name]
            back = before - weight  # a gradient: it points away from the mean
            if keep:
                past = self.momentum.setdefault(name, torch.zeros_like(back)).mul_(keep).add_(back)
                back = back.add(past, alpha=keep)
            weight.copy_(before.sub_(back, alpha=rate))

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _states(self) -> Iterator[Tensor]:
        """The floating-point parts of the inner optimiser's state, in the order of the parameters; not what counts
        steps, which is the same on all copies, and lies on the host."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                slots = self.optimizer.state.get(parameter, {})
                for name in sorted(slots.keys() - COUNTERS):
                    if isinstance(slots[name], Tensor) and slots[name].is_floating_point():
                        yield slots[name]

    def _average(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        settle = getattr(torch, flat.device.type).synchronize  # meetings are few: to be timed, they may be waited for
        settle()
        self.traffic.begin(flat.nbytes)
        try:
            dist.all_reduce(flat, group=self.group)
            settle()
        finally:
            self.traffic.end()
        flat.div_(self.group.size())
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):  # type: ignore[no-untyped-call]
            tensor.copy_(mean.view_as(tensor))


def _alike(tensors: list[Tensor], most: int = 1 << 24) -> Iterator[list[Tensor]]:
    """Groups of one dtype of up to `most` numbers, so that few transfers carry them and little memory is needed."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group: list[Tensor] = []
        held = 0
        for tensor in (tensor for tensor in tensors if tensor.dtype is dtype):
            if group and held + tensor.numel() > most:
                yield group
                group, held = [], 0
            group.append(tensor)
            held += tensor.numel()
        if group:
            yield group
