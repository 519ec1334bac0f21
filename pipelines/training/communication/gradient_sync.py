"""One training's gradient sync between its ranks: when copies step alone and when they meet, and what is sent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Communication
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.communication.count import CountSent
from pipelines.training.communication.hooks import count_and_compress
from pipelines.training.communication.local_sgd import Meetings
from pipelines.training.communication.powersgd import PowerSGD
from pipelines.training.communication.sampling import Sampler
from pipelines.training.communication.traffic import Traffic

MOMENTUM = "momentum"  # group of a checkpoint's chunks


class GradientSync:
    """`meetings` is None where gradients are averaged at every step, `power` where they are not compressed by PowerSGD.

    Transfers of DDP and of meetings are counted one by one; meetings are timed so too, and on the CPU also DDP's (an
    accelerator's are only enqueued). In other layouts those of the first step are counted, and each step sends the
    same. Where transfers can't be timed one by one, `sampler` times all collectives in a step now and then.
    """

    def __init__(
        self,
        traffic: Traffic,
        meetings: Meetings | None,
        power: PowerSGD | None,
        counted: bool,
        timed: bool = False,
        sampler: Sampler | None = None,
    ) -> None:
        self.traffic, self.meetings, self.power, self.counted, self.timed = traffic, meetings, power, counted, timed
        self.sampler = sampler
        self._apart = False  # whether the latest step was one that each copy took for itself
        self._each_step: float | None = None

    @classmethod
    def of(
        cls,
        communication: Communication,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        mesh: DeviceMesh | None,
        traffic: Traffic,
        sampler: Sampler | None = None,
    ) -> "GradientSync":
        """Of `module`, which is what the step calls: in DistributedDataParallel where whole copies are. From now on
        these average their gradients as `communication` says. `sampler`: of the rank that tells, where
        there are several."""
        if not isinstance(module, DistributedDataParallel):
            return cls(traffic, None, None, counted=mesh is None, sampler=sampler)
        power, meetings = count_and_compress(module, communication, traffic), None
        if communication.local_steps > 1:
            meetings = Meetings(communication, module.module, optimizer, module.process_group, traffic)
        timed = all(parameter.device.type == "cpu" for parameter in module.parameters())
        return cls(traffic, meetings, power, counted=True, timed=timed, sampler=None if timed else sampler)

    def is_local(self, step: int) -> bool:
        """Whether each copy takes `step` (from 0) for itself."""
        return self.meetings is not None and self.meetings.is_local(step)

    def together(self, done: int, steps: int) -> bool:
        """Whether all copies are the same after `done` of `steps` steps: the moments to save and to leave."""
        return self.meetings is None or self.meetings.together(done, steps)

    def meet(self, done: int, steps: int) -> None:
        """After `done` steps: let the copies meet if it is time."""
        if self.meetings is not None:
            self.meetings.after(done, steps)

    def saved(self) -> dict[str, Chunk]:
        """What a checkpoint must hold besides weights and optimiser, as `Extra` has it."""
        if self.meetings is not None:
            return {f"{MOMENTUM}/{name}": Chunk.of(tensor) for name, tensor in self.meetings.momentum.items()}
        return self.power.saved() if self.power is not None else {}

    def load(self, chunks: dict[str, Chunk], step: int) -> None:
        """Go on from a checkpoint of `step`, whose weights and optimiser state are in place already."""
        if self.meetings is not None:
            start = f"{MOMENTUM}/"
            self.meetings.load({n.removeprefix(start): c.data for n, c in chunks.items() if n.startswith(start)})
        if self.power is not None:
            self.power.load(chunks, step)

    def forget(self, step: int) -> None:
        """After `step` steps, the last of which had no finite gradient: PowerSGD would add it to all that follow."""
        if self.power is not None:
            self.power.load({}, step)

    def update(self, scaler: torch.amp.GradScaler) -> None:
        """Let the loss scaler choose its next scale. What PowerSGD remembers are parts of scaled gradients: it
        follows."""
        if self.power is None or not scaler.is_enabled():
            scaler.update()
            return
        before = scaler.get_scale()
        scaler.update()
        after = scaler.get_scale()
        if after != before != 0:
            self.power.rescale(after / before)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around a step's passes."""
        if not self.counted and self._each_step is None:
            with CountSent() as sent:
                yield
            self._each_step = sent.bytes
        else:
            yield
        self.traffic.add_sent(self._each_step or 0.0)

    def timing(self, step: int) -> AbstractContextManager[None]:
        """Around the whole of `step` (from 0): some are sampled, of those in which gradients are averaged."""
        self._apart = self.is_local(step)
        return nullcontext() if self.sampler is None or self._apart else self.sampler.step()

    def metrics(self, steps: int, seconds: float) -> dict[str, float]:
        """Of the last `steps` steps, which took `seconds`: MB that this rank sent a step, and the share of the time in
        which a transfer was under way (overlapped or not), where that is known: of all steps or of a sample."""
        if self.traffic.ranks == 1:
            return {}
        sent, busy = self.traffic.taken()
        if self.timed or self._apart:
            share: float | None = busy / seconds
        else:
            share = self.sampler.share() if self.sampler is not None else None
        timed = {} if share is None else {"communication_share": share}
        return {"sent_mb_per_step": sent / steps / 1e6, **timed}
