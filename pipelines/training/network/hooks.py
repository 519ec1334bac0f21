"""How DDP averages a bucket of gradients: as it is, in a narrow type, or as PowerSGD's factors; always counted."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Network
from pipelines.training.network.wire import Wire

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def count_and_compress(module: DistributedDataParallel, network: Network, wire: Wire) -> None:
    """Let `module` average its gradients as `network` says, counted by `wire`."""
    group = module.process_group
    if network.compression == "powersgd":
        module.register_comm_hook(_PowerSGD(network, group, wire), _PowerSGD.average)
        return
    module.register_comm_hook(_Average(group, wire, NARROW.get(network.compression)), _Average.average)


class _Average:
    """The mean over the ranks, sent as `dtype` (None: as it is)."""

    def __init__(self, group: dist.ProcessGroup, wire: Wire, dtype: torch.dtype | None) -> None:
        self.group, self.wire, self.dtype = group, wire, dtype

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        gradients: Tensor = bucket.buffer()
        gradients.div_(self.group.size())  # before: so that fp16 holds the sum
        sent = gradients if self.dtype is None else gradients.to(self.dtype)
        self.wire.begin(sent.nbytes)
        work = dist.all_reduce(sent, group=self.group, async_op=True)
        assert work is not None

        def received(future: Future[Any]) -> Tensor:
            future.value()  # raises what broke the connection
            self.wire.end()
            return gradients if self.dtype is None else gradients.copy_(sent)

        future: Future[Tensor] = work.get_future().then(received)
        return future


class _PowerSGD:
    """Vogels et al. 2019, arXiv:1905.13727, with error feedback and warm start, by torch's hook.

    It starts from random factors that are the same on all ranks, and its memory of errors is not part of a checkpoint:
    a resumed training begins it anew.
    """

    def __init__(self, network: Network, group: dist.ProcessGroup, wire: Wire) -> None:
        self.wire = wire
        self.state = powerSGD_hook.PowerSGDState(
            process_group=group, matrix_approximation_rank=network.powersgd_rank,
            start_powerSGD_iter=network.powersgd_after, use_error_feedback=True, warm_start=True,
        )  # fmt: skip

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        state = self.state
        before = state.total_numel_after_compression
        compressed = state.iter >= state.start_powerSGD_iter
        width = bucket.buffer().element_size()
        self.wire.begin(0 if compressed else bucket.buffer().nbytes)
        done = powerSGD_hook.powerSGD_hook(state, bucket)
        if compressed:  # torch counts what it sent, once it has made the factors
            self.wire.add((state.total_numel_after_compression - before) * width)

        def received(future: Future[Tensor]) -> Tensor:
            self.wire.end()
            return future.value()

        return done.then(received)
