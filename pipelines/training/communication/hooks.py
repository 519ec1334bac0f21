"""How DDP averages a bucket of gradients: as it is, in a narrow type, or as PowerSGD's factors; always counted."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Communication
from pipelines.training.communication.powersgd import PowerSGD
from pipelines.training.communication.traffic import Traffic

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def count_and_compress(
    module: DistributedDataParallel, communication: Communication, traffic: Traffic
) -> PowerSGD | None:
    """Let `module` average its gradients as `communication` says, counted by `traffic`. Returns what has a memory."""
    group = module.process_group
    if communication.compression == "powersgd":
        power = PowerSGD(communication, module.module, group, traffic)
        module.register_comm_hook(power, PowerSGD.average)
        return power
    module.register_comm_hook(_Average(group, traffic, NARROW.get(communication.compression)), _Average.average)
    return None


class _Average:
    """The mean over the ranks, sent as `dtype` (None: as it is)."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic, dtype: torch.dtype | None) -> None:
        self.group, self.traffic, self.dtype = group, traffic, dtype

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        gradients: Tensor = bucket.buffer()
        gradients.div_(self.group.size())  # before: so that fp16 holds the sum
        sent = gradients if self.dtype is None else gradients.to(self.dtype)
        self.traffic.begin(sent.nbytes)
        work = dist.all_reduce(sent, group=self.group, async_op=True)
        assert work is not None

        def received(future: Future[Any]) -> Tensor:
            future.value()  # raises what broke the connection
            self.traffic.end()
            return gradients if self.dtype is None else gradients.copy_(sent)

        future: Future[Tensor] = work.get_future().then(received)
        return future
