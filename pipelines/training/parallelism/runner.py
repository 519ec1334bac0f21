"""Running a model forward and back, whichever way it is cut."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

#: (answers, targets) → the sum of the losses, and what to go back from: the same, weighted and scaled.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Tensors by the names of the model's arguments, a row a sample.
Beside = Mapping[str, Tensor]
NOTHING: Beside = MappingProxyType({})


class Runner(Protocol):
    local: bool
    """Whether the gradients of whole copies stay each rank's own, instead of being averaged."""

    def backward(
        self, inputs: Tensor, targets: Tensor, objective: Objective, most: int, beside: Beside = NOTHING
    ) -> Tensor:
        """Add this rank's gradients up over the ranks. Returns the sum of its losses (0 where another rank speaks for
        the same samples). `most`: samples of the rank that has most, so that all take the same number of microbatches;
        `beside`: what the model is given beside the inputs."""

    def answers(self, inputs: Tensor, beside: Beside = NOTHING) -> Tensor | None:
        """The model's answers, without gradients; None on a rank that does not get them."""


class Direct:
    """The whole depth of the model on every rank: data, shard, tensor."""

    def __init__(
        self, module: nn.Module, model: nn.Module, autocast: Callable[[], AbstractContextManager[None]], *,
        accumulate: int, zero: int, owns_loss: bool,
    ) -> None:  # fmt: skip
        """`zero`: of sharded models; 1: gradients are summed up after the last microbatch only, else after each, so
        that no rank holds more than its shard of them; 1 and 2: weights that are gathered stay for the next
        microbatch."""
        self.module, self.model, self.autocast = module, model, autocast
        self.accumulate, self.zero, self.owns_loss = accumulate, zero, owns_loss
        self.sums = not owns_loss or isinstance(module, DistributedDataParallel | FSDPModule)
        """Whether a batch in one microbatch takes more than a pass: others speak for it, or gradients are summed up."""
        self.local = False

    def backward(
        self, inputs: Tensor, targets: Tensor, objective: Objective, most: int, beside: Beside = NOTHING
    ) -> Tensor:
        microbatches = min(self.accumulate, most)
        if microbatches == 1 and len(inputs) and not self.sums:
            return self._microbatch(inputs, targets, objective, beside, True)
        total = torch.zeros((), device=inputs.device)
        pairs = zip(
            inputs.tensor_split(microbatches),
            targets.tensor_split(microbatches),
            cut(beside, microbatches),
            strict=True,
        )
        for index, (x, y, more) in enumerate(pairs, start=1):
            real = len(x) > 0
            if not real:  # every rank takes part in every microbatch: with a zero sample of weight 0
                x, y, more = a_zero(x), a_zero(y), {name: a_zero(values) for name, values in more.items()}
            with self._summing(index == microbatches):
                loss = self._microbatch(x, y, objective, more, real)
            if real:
                total += loss
        return total if self.owns_loss else total * 0

    def _microbatch(self, x: Tensor, y: Tensor, objective: Objective, beside: Beside, real: bool) -> Tensor:
        with self.autocast():
            answers = self.module(x, **beside)
        loss, scaled = objective(answers, y)
        torch.autograd.backward(scaled if real else scaled * 0)
        return loss.detach()

    def answers(self, inputs: Tensor, beside: Beside = NOTHING) -> Tensor | None:
        count = len(inputs)
        if count == 0:
            inputs, beside = a_zero(inputs), {name: a_zero(values) for name, values in beside.items()}
        with torch.no_grad(), self.autocast():
            answers: Tensor = self.model(inputs, **beside)[:count]
        reshard(self.model)
        return answers

    @contextmanager
    def _summing(self, last: bool) -> Iterator[None]:
        """Inside, a backward pass sums up over the ranks what a microbatch must."""
        if isinstance(self.module, DistributedDataParallel) and (self.local or not last):
            with self.module.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule):
            self.module.set_is_last_backward(last)
            self.module.set_requires_gradient_sync(last or self.zero > 1)
            self.module.set_requires_all_reduce(last)  # between copies of a shard group
            if self.zero < 3:
                self.module.set_reshard_after_backward(last)
        yield


def cut(beside: Beside, microbatches: int) -> list[dict[str, Tensor]]:
    """Its microbatches, as `tensor_split` makes them."""
    parts = {name: values.tensor_split(microbatches) for name, values in beside.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(microbatches)]


def a_zero(tensor: Tensor) -> Tensor:
    """One row of zeros like the rows of `tensor`."""
    return tensor.new_zeros(1, *tensor.shape[1:])


def reshard(model: nn.Module) -> None:
    """Drop gathered weights, so that `model.parameters()` are the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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
