"""Saving while training goes on, and loading into any parallel layout.

A save copies the state into host memory (staging), which may take until the optimiser's next step, since nothing
changes before it; then a thread plans with the other ranks, writes this rank's part, and rank 0 completes the
checkpoint. Staging buffers are kept for the next save. One save is in flight at most: a second one waits for it.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from threading import Event
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.console.progress import say
from pipelines.params.train.checkpoints import Checkpoints as Rules
from pipelines.training.checkpoints.chunks import Chunk, copy_into, rows_for
from pipelines.training.checkpoints.gather import whole_tensors
from pipelines.training.checkpoints.manifest import CheckpointManifest, Damaged, Tensors
from pipelines.training.checkpoints.retention import Retention
from pipelines.training.checkpoints.state import (
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_chunks,
    optimizer_state,
)
from pipelines.training.process.process_group import Ranks
from storage.errors import FormatError, LakeError, ShardlineError
from storage.lake import Zone


@dataclass
class Extra:
    """What a checkpoint holds beside model and optimiser: chunks by name, `group/<name of a model's tensor>`; and JSON
    values, of which rank 0's count. score: the val loss of this step.

    A chunk's tensor has the shape of the model's, and is laid out like it; or a row for each copy of the model in front
    (see `rows`); or another shape, and then every rank gets it whole.
    """

    chunks: dict[str, Chunk] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    score: float | None = None


class Saver:
    """Saves and restores `model` and `optimizer`. Used by all ranks together.

    `group` is a gloo group of the ranks (None for a single one), which nobody else uses: the thread speaks through it.
    `paused` counts the seconds for which training had to wait.
    """

    def __init__(
        self, zone: Zone, rules: Rules, ranks: Ranks, group: Any, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.zone, self.rules, self.ranks, self.model, self.optimizer = zone, rules, ranks, model, optimizer
        self.retention = Retention(zone, rules)
        self.paused = 0.0
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._group = group
        cuda: Any = torch.cuda
        current = cuda.current_device() if cuda.is_initialized() else None
        self._pool = ThreadPoolExecutor(1, "checkpoint", _begin_on, (current,))
        self._flight: Future[None] | None = None
        self._staged = Event()
        self._staged.set()
        self._buffers: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(lambda *_: self.settle())

    # -- saving --------------------------------------------------------------------------------------------------

    def save(self, step: int, extra: Extra, *, wait: bool = False) -> None:
        """Save the state of this moment. With `wait`, or without `rules.background`, it is complete on return.

        What fails then (a full disk, a lake out of reach) raises LakeError; in the background it is told, training goes
        on, and the next save tries again.
        """
        began = perf_counter()
        self.wait()
        tensors, values = optimizer_state(self.model, self.optimizer)
        live = {name: Chunk.of(tensor) for name, tensor in (model_tensors(self.model) | tensors).items()} | extra.chunks
        if self.ranks.leads:
            values |= {f"values/{name}": value for name, value in extra.values.items()}
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # DCP's on a single rank
        if wait or not self.rules.background:
            self._pool.submit(self._write, step, live, values, extra.score).result()
        else:
            staged = {name: chunk.holding(self._buffer(name, chunk)) for name, chunk in live.items()}
            copy = self._copying(live, staged)
            self._staged.clear()
            self._flight = self._pool.submit(self._in_background, copy, step, staged, values, extra.score)
        self.paused += perf_counter() - began

    def settle(self) -> None:
        """Until the state is copied and may change; the optimiser calls it before each step."""
        if not self._staged.is_set():
            began = perf_counter()
            self._staged.wait()
            self.paused += perf_counter() - began

    def wait(self) -> None:
        """Until no save is in flight."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.result()

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._flight is not None and not self._flight.done()

    def close(self) -> None:
        """Wait for the save in flight, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _buffer(self, name: str, chunk: Chunk) -> Tensor:
        """Host memory for a chunk, the same as for its last save (or its loading, unless a GPU needs it pinned)."""
        found, pin = self._buffers.get(name), chunk.data.device.type == "cuda"
        fits = found is not None and found.shape == chunk.data.shape and found.dtype is chunk.data.dtype
        if found is None or not fits or (pin and not found.is_pinned()):
            found = self._buffers[name] = torch.empty(chunk.sizes, dtype=chunk.data.dtype, pin_memory=pin)
        return found

    def _copying(self, live: Mapping[str, Chunk], staged: Mapping[str, Chunk]) -> Callable[[], None]:
        """What copies the state, in the background. Buffers of the model are copied at once: a forward pass may change
        them. On a GPU the copies have a stream of their own, which waits for what this thread has started."""
        later = []
        for name, chunk in live.items():
            if name.startswith("model/") and self._moves(name):
                copy_into(staged[name].data, chunk.data)
            else:
                later.append((staged[name].data, chunk.data))
        device = next((source.device for _, source in later if source.device.type == "cuda"), None)
        now = torch.cuda.current_stream(device) if device is not None else None

        def copy() -> None:
            stream: Any = torch.cuda.Stream(device) if now is not None else None  # type: ignore[no-untyped-call]
            if stream is not None and now is not None:
                stream.wait_stream(now)
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                for target, source in later:
                    copy_into(target, source)
            if stream is not None:
                stream.synchronize()

        return copy

    def _moves(self, name: str) -> bool:
        """Whether a chunk `group/<name of a model's tensor>` is of a buffer."""
        return name.partition("/")[2] not in self._parameters

    def _in_background(
        self, copy: Callable[[], None], step: int, chunks: dict[str, Chunk], values: dict[str, Any], score: float | None
    ) -> None:
        try:
            copy()
        finally:
            self._staged.set()
        try:
            self._write(step, chunks, values, score)
        except (ShardlineError, OSError) as error:
            if self.ranks.leads:
                say(f"{error} Training goes on, and the next checkpoint tries again.")

    def _write(self, step: int, chunks: dict[str, Chunk], values: dict[str, Any], score: float | None) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        from pipelines.training.checkpoints.planning import ChunkSavePlanner
        from pipelines.training.checkpoints.storage import ZoneWriter

        def commit(files: dict[str, tuple[int, str]], tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
            self.retention.commit(CheckpointManifest(step, self.ranks.world, score, files, tensors | empty, values))

        empty = {name: Tensors.of(chunk) for name, chunk in chunks.items() if 0 in chunk.shape}  # nobody writes them

        moving = [name for name in chunks if not name.startswith("optimizer/") and self._moves(name)]
        writer, planner = ZoneWriter(self.zone, commit), ChunkSavePlanner(moving)
        content: dict[str, Any] = {**chunks, **values}
        alone = self._group is None
        try:
            save(content, storage_writer=writer, planner=planner, process_group=self._group, no_dist=alone)
        except CheckpointException as failed:
            if self.ranks.leads:  # every rank has ended its part
                with suppress(ShardlineError, OSError):
                    self.retention.prune()
            raise self._explained(step, failed) from failed

    def _explained(self, step: int, failed: Any) -> BaseException:
        rank, (error, _) = min(failed.failures.items())
        if not isinstance(error, ShardlineError | OSError):
            return failed if isinstance(failed, Exception) else RuntimeError(str(failed))
        last = self.retention.last()
        before = f"the last one is of step {last}" if last is not None else "there is none yet"
        return LakeError(f"The checkpoint of step {step} was not written ({before}), by rank {rank}: {error}")

    # -- restoring -----------------------------------------------------------------------------------------------

    def restore(self, before: int | None = None, copy: tuple[int, int] = (0, 1)) -> Extra | None:
        """Take model and optimiser back to the newest sound checkpoint (of a step before `before`), and return the rest
        of it; None without one. `copy`: which of how many copies of the model this rank has, or has a part of.

        Nothing changes before every rank has read and verified its part. A damaged checkpoint is passed over, with a
        word. Raises FormatError for one of an unknown format, or that doesn't fit the model.
        """
        self.wait()
        if self.ranks.leads and before is None:
            self.zone.sweep_temporaries()
        found = self._older(before) if self.ranks.leads else iter(())
        while True:
            manifest: CheckpointManifest | None = self.ranks.share(next(found, None))
            if manifest is None:
                return None
            chunks = self._boxes(manifest, copy)
            problems = [problem for problem in self.ranks.gather(self._read(manifest, chunks)) if problem is not None]
            if not problems:
                break
            misfits = [text for kind, text in problems if kind == "misfit"]
            if misfits:
                raise self._misfit(manifest.step, misfits[0])
            if self.ranks.leads:
                self.retention.pass_over(manifest.step, problems[0][1])
        load_model(self.model, chunks)
        try:
            load_optimizer(self.model, self.optimizer, chunks, manifest.values)
        except (TypeError, ValueError, RuntimeError) as error:  # a setting that this optimiser can't have
            raise self._misfit(manifest.step, f"{type(error).__name__}: {error}") from error
        values = {name.removeprefix("values/"): v for name, v in manifest.values.items() if name.startswith("values/")}
        rest = {name: chunk for name, chunk in chunks.items() if not name.startswith(("model/", "optimizer/"))}
        if self.rules.background:
            self._buffers = {name: chunk.data for name, chunk in chunks.items() if name not in rest}
        return Extra(rest, values, manifest.score)

    def _older(self, before: int | None) -> Iterator[CheckpointManifest]:
        return (manifest for manifest in self.retention.newest_first() if before is None or manifest.step < before)

    def _boxes(self, manifest: CheckpointManifest, copy: tuple[int, int]) -> dict[str, Chunk]:
        """Empty chunks for all that this rank needs of a checkpoint."""
        model = {name: Chunk.of(tensor) for name, tensor in model_tensors(self.model).items()}
        boxes = {name: chunk.holding(self._buffer(name, chunk)) for name, chunk in model.items()}
        boxes |= optimizer_chunks(self.model, manifest.values, manifest.shapes())
        for name, (dtype, shape) in manifest.shapes().items():
            group, _, inner = name.partition("/")
            if group in ("model", "optimizer") or f"model/{inner}" not in model:
                continue
            like = model[f"model/{inner}"]
            if shape == like.shape:
                boxes[name] = like.holding(torch.empty(like.sizes, dtype=dtype))
            elif shape[1:] == like.shape:
                boxes[name] = rows_for(shape, dtype, *copy)
            else:
                boxes[name] = Chunk.of(torch.empty(shape, dtype=dtype))
        return boxes

    def _read(self, manifest: CheckpointManifest, boxes: dict[str, Chunk]) -> tuple[str, str] | None:
        """Fill the boxes, or say what is wrong:
        ("damaged" or "misfit", why). Raises LakeError where the lake is out of reach."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        from pipelines.training.checkpoints.planning import ChunkLoadPlanner
        from pipelines.training.checkpoints.storage import ZoneReader

        for name, chunk in boxes.items():
            about = manifest.tensors.get(name)
            if about is None or tuple(about.shape) != chunk.shape or about.torch_dtype is not chunk.data.dtype:
                there = f"{about.dtype} {about.shape}" if about else "nothing"
                return "misfit", f"{name} is {chunk.data.dtype} {list(chunk.shape)} here, and {there} there."
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        content: dict[str, Any] = dict(boxes)
        try:
            load(content, storage_reader=ZoneReader(self.zone, manifest), planner=ChunkLoadPlanner(), no_dist=True)
        except CheckpointException as failed:
            _, (error, _) = min(failed.failures.items())
            if isinstance(error, Damaged):
                return "damaged", str(error)
            raise error from failed
        saved = {name for name in manifest.tensors if name.startswith("model/")}
        if self.ranks.world == 1 and (gone := sorted(saved - boxes.keys())):
            return "misfit", f"{gone[0]} is there, and not here."
        return None

    def _misfit(self, step: int, why: str) -> FormatError:
        place = self.zone.describe()
        return FormatError(
            f"{place}, step {step}: this checkpoint doesn't fit the model: its code changed since. Go back to that "
            f"code, or delete {place} to train from the start. {why}"
        )

    # -- whole tensors -------------------------------------------------------------------------------------------

    def whole(self, chunks: Mapping[str, Chunk]) -> dict[str, Tensor]:
        """The whole tensors of all ranks' chunks on rank 0, {} on the others; all ranks call it together."""
        self.wait()  # the group is the thread's until then
        return whole_tensors(chunks, self._group)

    def clear(self) -> None:
        """The training is done (rank 0): all checkpoints go but those that stay by the rules."""
        self.retention.clear()


def _begin_on(device: int | None) -> None:
    """The thread works on its rank's GPU. Left on the first, as threads begin, each rank would take memory there."""
    if device is not None:
        torch.cuda.set_device(device)
