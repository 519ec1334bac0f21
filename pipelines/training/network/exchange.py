"""One training's exchange between its ranks: when copies step alone and when they meet, and what is sent."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Network
from pipelines.training.network.count import CountSent
from pipelines.training.network.local import Meetings
from pipelines.training.network.wire import Wire


class Exchange:
    """`meetings` is None where gradients are averaged at every step.

    Transfers of DDP and of meetings are counted and timed one by one; in other layouts those of the first step are
    counted, and each step sends the same.
    """

    def __init__(self, wire: Wire, meetings: Meetings | None, counted: bool) -> None:
        self.wire, self.meetings, self.counted = wire, meetings, counted
        self._each_step: float | None = None

    @classmethod
    def of(
        cls, network: Network, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh | None, wire: Wire
    ) -> "Exchange":
        """Of `module`, which is what the step calls: in DistributedDataParallel where whole copies are."""
        whole = isinstance(module, DistributedDataParallel)
        meetings = None
        if network.local_steps > 1 and isinstance(module, DistributedDataParallel):
            meetings = Meetings(network, module.module, optimizer, module.process_group, wire)
        return cls(wire, meetings, counted=whole or mesh is None)

    def alone(self, step: int) -> bool:
        """Whether each copy takes `step` (from 0) for itself."""
        return self.meetings is not None and self.meetings.alone(step)

    def together(self, done: int, steps: int) -> bool:
        """Whether all copies are the same after `done` of `steps` steps: the moments to save and to leave."""
        return self.meetings is None or self.meetings.together(done, steps)

    def meet(self, done: int, steps: int) -> None:
        """After `done` steps: let the copies meet if it is time."""
        if self.meetings is not None and self.meetings.due(done, steps):
            self.meetings.meet()

    @property
    def momentum(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides weights and optimiser; the same on all ranks whenever one is saved."""
        return self.meetings.momentum if self.meetings is not None else {}

    def load(self, momentum: dict[str, Tensor]) -> None:
        """Go on from a checkpoint, whose weights and optimiser state are in place already."""
        if self.meetings is not None:
            self.meetings.load(momentum)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around a step's passes."""
        if not self.counted and self._each_step is None:
            with CountSent() as sent:
                yield
            self._each_step = sent.bytes
        else:
            yield
        self.wire.add_sent(self._each_step or 0.0)

    def metrics(self, steps: int, seconds: float) -> dict[str, float]:
        """Of the last `steps` steps, which took `seconds`: MB that this rank sent a step; where transfers are timed one
        by one, also the share of the time in which one was under way (overlapped or not)."""
        if self.wire.ranks == 1:
            return {}
        sent, busy = self.wire.taken()
        timed = {"network_share": busy / seconds} if self.counted else {}
        return {"sent_mb_per_step": sent / steps / 1e6, **timed}
