"""PowerSGD (Vogels et al. 2019, arXiv:1905.13727) by torch's hook, with a memory that outlives a process.

torch keeps what it remembers by bucket, but a process has other buckets in its first step than later, when DDP has seen
in which order gradients come. So this moves the memory along, parameter by parameter, whenever buckets change: then a
resumed training has what an undisturbed one has.
"""

from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.futures import Future

from pipelines.params import Communication
from pipelines.training.checkpoints.chunks import Chunk, row, taken
from pipelines.training.communication.traffic import Traffic

ERROR, FACTOR = "error", "factor"  # groups of a checkpoint's chunks


class PowerSGD:
    """With error feedback and warm start. `errors`: of each parameter what this copy's gradients lost so far, flat;
    `factors`: of each compressed one the right factor of the last step, the same for all copies; both hold just what
    no bucket of torch's state holds."""

    def __init__(
        self, communication: Communication, model: nn.Module, group: dist.ProcessGroup, traffic: Traffic
    ) -> None:
        self.communication, self.group, self.traffic = communication, group, traffic
        self.parameters = dict(model.named_parameters())
        # A bucket's second and third transfer start when the one before has come, which with gloo is at another moment
        # on each rank: with two buckets under way, ranks would take each other's transfers for their own.
        self.in_turn = dist.get_backend(group) == "gloo"
        self.errors: dict[Tensor, Tensor] = {}
        self.factors: dict[Tensor, Tensor] = {}
        self._begin(0)

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """DDP's hook."""
        state = self.state
        before = state.total_numel_after_compression
        compressed = state.iter >= state.start_powerSGD_iter
        width = bucket.buffer().element_size()
        self.traffic.begin(0 if compressed else bucket.buffer().nbytes)
        if compressed:
            self._follow(bucket.index(), bucket.parameters())
        done = powerSGD_hook.powerSGD_hook(state, bucket)
        if compressed:  # torch counts what it sent, once it has made the factors
            self.traffic.add((state.total_numel_after_compression - before) * width)
            if self.in_turn:
                done.wait()

        def received(future: Future[Tensor]) -> Tensor:
            self.traffic.end()
            return future.value()

        return done.then(received)

    def saved(self) -> dict[str, Chunk]:
        """Between steps: a row of `error/<parameter>` for each copy, and `factor/<parameter>`. What training may change
        before it is written is copied. Of a parameter that a pipeline's first and last stage share, one stage's rows
        count."""
        errors, factors = dict(self.errors), dict(self.factors)
        for index, parameters in self._buckets.items():
            self._unpack(index, parameters, errors, factors)
        place, places = self.group.rank(), self.group.size()
        chunks: dict[str, Chunk] = {}
        for name, parameter in self.parameters.items():
            if parameter in errors:  # a step makes new ones
                chunks[f"{ERROR}/{name}"] = row(errors[parameter].view(parameter.shape), place, places)
            if parameter in factors:
                chunks[f"{FACTOR}/{name}"] = Chunk.of(factors[parameter].clone())
        return chunks

    def load(self, chunks: dict[str, Chunk], step: int) -> None:
        """Go on after `step` steps with what `saved` gave, on any number of copies."""
        self._begin(step)
        copies = self.group.size()
        for name, parameter in self.parameters.items():
            if (rows := chunks.get(f"{ERROR}/{name}")) is not None:
                self.errors[parameter] = taken(rows, copies).to(parameter.device).flatten()
            if (factor := chunks.get(f"{FACTOR}/{name}")) is not None:
                self.factors[parameter] = factor.data.to(parameter.device)

    def rescale(self, factor: float) -> None:
        """Between steps: gradients come `factor` times as large from now on. Makes new tensors, as a step does: those
        of a checkpoint may not be written yet."""
        self.errors = {parameter: error * factor for parameter, error in self.errors.items()}
        for index, error in self.state.error_dict.items():
            self.state.error_dict[index] = error * factor

    def _begin(self, step: int) -> None:
        """Without a memory; the random factors that it starts from are the same on all ranks."""
        self.errors, self.factors = {}, {}
        self._buckets: dict[int, list[Tensor]] = {}  # whose memory torch's state has
        self.state = powerSGD_hook.PowerSGDState(
            process_group=self.group, matrix_approximation_rank=self.communication.powersgd_rank,
            start_powerSGD_iter=self.communication.powersgd_after, use_error_feedback=True, warm_start=True,
        )  # fmt: skip
        self.state.iter = step

    def _follow(self, index: int, parameters: list[Tensor]) -> None:
        """Let torch's state have the memory of the bucket `index`. Buckets come in their order: those before it are
        under way, and those from it on have not begun."""
        before = self._buckets.get(index, [])
        if [id(p) for p in before] == [id(p) for p in parameters]:
            return
        for other in [other for other in self._buckets if other >= index]:
            self._unpack(other, self._buckets.pop(other), self.errors, self.factors)
            for memory in (self.state.error_dict, self.state.p_memory_dict, self.state.q_memory_dict):
                memory.pop(other, None)
        self._pack(index, parameters)
        self._buckets[index] = parameters

    def _pack(self, index: int, parameters: list[Tensor]) -> None:
        state = self.state
        if any(p in self.errors for p in parameters):
            flat = [self.errors.pop(p, p.new_zeros(p.numel())) for p in parameters]
            state.error_dict[index] = torch.cat(flat)
        compressed = self._compressed(parameters)
        if compressed and all(p in self.factors for p in compressed):
            factors = [self.factors.pop(p) for p in compressed]
            left = sum(p.shape[0] * q.shape[1] for p, q in zip(compressed, factors, strict=True))
            state.p_memory_dict[index] = factors[0].new_empty(left)  # which is computed anew
            state.q_memory_dict[index] = torch.cat([q.flatten() for q in factors])

    def _unpack(
        self, index: int, parameters: list[Tensor], errors: dict[Tensor, Tensor], factors: dict[Tensor, Tensor]
    ) -> None:
        """Add the memory of a bucket; no copies."""
        sizes = [p.numel() for p in parameters]
        errors |= zip(parameters, self.state.error_dict[index].split(sizes), strict=True)  # type: ignore[no-untyped-call]
        compressed = self._compressed(parameters)
        shapes = [(p.numel() // p.shape[0], self._rank(p)) for p in compressed]
        held = self.state.q_memory_dict[index].split([prod(shape) for shape in shapes])  # type: ignore[no-untyped-call]
        factors |= {p: q.view(shape) for p, q, shape in zip(compressed, held, shapes, strict=True)}

    def _compressed(self, parameters: list[Tensor]) -> list[Tensor]:
        """Those that torch compresses, in the order in which it lays their factors: those of one shape together."""
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for p in parameters:
            rows, columns = p.shape[0], p.numel() // p.shape[0]
            if (rows + columns) * self._rank(p) * self.state.min_compression_rate < rows * columns:
                by_shape.setdefault((rows, columns), []).append(p)
        return [p for alike in by_shape.values() for p in alike]

    def _rank(self, parameter: Tensor) -> int:
        rows = parameter.shape[0]
        return int(min(rows, parameter.numel() // rows, self.state.matrix_approximation_rank))
