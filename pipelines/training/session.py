"""One rank's training, put together: model, optimiser, data, state and checkpoints."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.caching.tiers import open_cache
from pipelines.models import ModelConfig, Task, task_of, with_loss
from pipelines.models.spec import why_malformed
from pipelines.params import Params
from pipelines.runtime.own_code import code_behind, digests
from pipelines.streaming import Loading, Stream
from pipelines.streaming.arrays import int64
from pipelines.streaming.from_params import parts_of_train, parts_of_val
from pipelines.training.checkpoints import Extra, Saver, checkpoint_key
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.place import find_place
from pipelines.training.communication import GradientSync, Sampler, Traffic
from pipelines.training.optimizers import build_optimizer
from pipelines.training.optimizers.ema import Average
from pipelines.training.parallelism import Group, Layout, SharedScaler, clip_, make_mesh, parallelize
from pipelines.training.parts import Checkpoints, Data, Goal, Learner
from pipelines.training.process.device import Precision, host_memory, pick_device, repeatable
from pipelines.training.process.heartbeat import collective_timeout
from pipelines.training.process.process_group import Ranks, joined
from pipelines.training.state import TrainState
from pipelines.workspace import Workspace
from storage.cache import Tiered
from storage.errors import DataError, FormatError, ParamsError
from storage.manifest import Manifest

_MIB = 1 << 20


@dataclass
class Session:
    """What the loop works on; see each part."""

    params: Params
    goal: Goal
    group: Group
    data: Data
    learner: Learner
    checkpoints: Checkpoints
    state: TrainState = field(default_factory=TrainState)
    average: Average | None = None

    def done(self) -> bool:
        """Whether all steps are done, or early stopping's patience is out."""
        patience = self.params.train.patience
        return self.state.step >= self.goal.steps or (patience is not None and self.state.stale >= patience)

    def validation_due(self) -> bool:
        step = self.state.step
        due = step % self.params.train.eval_every == 0 or step == self.goal.steps
        return self.data.validates and due and step > self.state.validated

    def checkpoint_due(self) -> bool:
        """After so many steps, and where a checkpoint of the best evaluation is wanted; at the end, what stays."""
        rules, step = self.params.train.checkpoints, self.state.step
        if step == 0:  # something to go back to
            return self.params.train.nonfinite.name == "backoff" and self.checkpoints.saved < 0
        best = rules.keep_best > 0 and step == self.state.best_step
        due = step % (rules.every or self.params.train.checkpoint_every) == 0
        if self.done():
            due = due and rules.keep_every is not None and step % rules.keep_every == 0
        due = due or best
        kept = self.checkpoints
        new = step > kept.saved or (best and not kept.rated)  # it may have been saved before it was evaluated
        return due and new and self.learner.gradient_sync.together(step, self.goal.steps)

    def clip(self) -> Tensor:
        """Bound the gradient by train.clip_value and its norm, over all ranks' pieces, by train.clip_norm. Returns the
        norm before."""
        train, parameters = self.params.train, self.learner.model.parameters()
        return clip_(parameters, train.clip_norm, self.group, self.learner.shared, value=train.clip_value)

    @contextmanager
    def val_stream(self, domain: str | None = None) -> Iterator[Stream]:
        """The val split, or one domain of it, in its stored order, once."""
        source = self.params, self.data.tiers, self.data.manifest, self.group.layout
        with open_stream(*source, "val", self.group.device, domain=domain) as stream:
            yield stream

    def note_validation(self, summary: dict[str, float]) -> None:
        """Take an evaluation into the state; keep the weights when they are the best and early stopping wants them."""
        best = self.state.add_validation(summary)
        if best and self.params.train.patience is not None:
            with self.averaged(final=True):
                self.checkpoints.best = {
                    name: chunk.holding(chunk.data.to("cpu", copy=True)) for name, chunk in self._weights().items()
                }

    def _weights(self) -> dict[str, Chunk]:
        """What this rank holds of the model's parameters and buffers."""
        return {name: Chunk.of(tensor) for name, tensor in self.learner.model.state_dict().items()}

    def averaged(self, *, final: bool = False) -> AbstractContextManager[None]:
        """Inside, the model's weights are their moving average where `train.ema` evaluates it, or, with `final`, where
        it becomes the model."""
        average = self.average
        if average is None or not (average.settings.final if final else average.settings.evaluate):
            return nullcontext()
        self.checkpoints.saver.settle()  # it may still be copying the weights
        return average.in_place()

    def final_weights(self) -> dict[str, Tensor]:
        """The best weights where early stopping is on, else the last ones or `train.ema`'s average of them: whole on
        rank 0, {} on the others. All ranks call it together."""
        with self.averaged(final=True):
            return self.checkpoints.saver.whole(self.checkpoints.best or self._weights())

    def save(self, *, wait: bool = False) -> None:
        """Write a checkpoint of this moment, in the background unless `wait`. Raises LakeError when waited for."""
        state = self.state
        score = state.val_curve[-1]["val_loss"] if state.val_curve and state.validated == state.step else None
        values = {
            "train": state.to_json(),
            "stream": self.data.stream.state_dict(),
            "scaler": self.learner.scaler.state_dict(),
        }
        chunks = {f"best/{name}": chunk for name, chunk in self.checkpoints.best.items()}
        chunks |= self.learner.gradient_sync.saved()
        if self.average is not None:
            chunks |= {f"average/{name}": Chunk.of(tensor) for name, tensor in self.average.tensors.items()}
        self.checkpoints.place.remember()
        self.checkpoints.saver.save(state.step, Extra(chunks, values, score), wait=wait)
        self.checkpoints.saved, self.checkpoints.rated = state.step, score is not None

    def restore(self, before: int | None = None) -> bool:
        """Go back to the newest checkpoint (of a step before `before`); False when there is none."""
        layout = self.group.layout
        saved = self.checkpoints.saver.restore(before, (layout.data_rank, layout.data_world))
        if saved is None:
            return False
        try:
            self._take(saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = self.checkpoints.saver.zone.describe()
            raise FormatError(
                f"{where}: the newest checkpoint's weights are sound, but not what it says "
                f"of the training ({type(error).__name__}: {error}). Delete its step's folder to use the one before."
            ) from error
        self.checkpoints.saved, self.checkpoints.rated = self.state.step, saved.score is not None
        return True

    def _take(self, saved: Extra) -> None:
        """Go to where a checkpoint is, whose weights and optimiser are in place already."""
        best = {name.removeprefix("best/"): c for name, c in saved.chunks.items() if name.startswith("best/")}
        self.checkpoints.best = best
        if self.average is not None:
            self.average.load({name: saved.chunks[f"average/{name}"].data for name in self.average.tensors})
        self.state = TrainState.from_json(saved.values["train"])
        self.learner.gradient_sync.load(saved.chunks, self.state.step)
        self.data.stream.load_state_dict(saved.values["stream"])
        if self.learner.scaler.is_enabled():
            self.learner.scaler.load_state_dict(saved.values["scaler"])

    def back_to_checkpoint(self) -> None:
        """Go back to the newest checkpoint in mid-training (`train.nonfinite: backoff` has one from the start on)."""
        self.learner.optimizer.zero_grad()
        found = self.restore()
        assert found, "backoff saves a checkpoint before the first step"


def open_stream(
    params: Params,
    tiers: Tiered,
    manifest: Manifest,
    layout: Layout,
    split: str,
    device: torch.device,
    *,
    train: bool = False,
    domain: str | None = None,
) -> Stream:
    """This rank's part of a split: shuffled, mixed and endless for training, else once in the stored order; of one
    domain only where it is named."""
    settings, compute = params.stream, params.compute
    parts = parts_of_train(settings, manifest) if train else parts_of_val(settings, manifest, domain)
    parts["loading"] = Loading(
        tiers=tiers,
        ahead=round(compute.ahead_mb * _MIB),
        memory=round(compute.memory_mb * _MIB),
        prefetch=compute.prefetch,
        allocate=host_memory(device),
    )
    return Stream(
        tiers.zone, manifest, split=split, batch_size=settings.batch_size, seed=params.seed, rank=layout.data_rank,
        world=layout.data_world, epochs=None if train else 1, **parts,
    )  # fmt: skip


@contextmanager
def open_session(ws: Workspace, ranks: Ranks, *, before: int | None = None) -> Iterator[Session]:
    """Everything of a training, at its start or where its last checkpoint was (with `before`: the last one that comes
    before that step); closed at the end."""
    params, train = ws.params, ws.params.train
    zone = ws.zone("shards")
    manifest = zone.manifest()
    task, config = aim(params, manifest)
    config = replace(config, code=code_behind(params.model.name, ws))
    validates = _validates(params, manifest, config.sequence_len)
    device = pick_device(train.device, ranks.local_rank, ranks.local_world)
    precision = Precision.choose(train.precision, device)
    layout = Layout.of(params, ranks.world, ranks.rank)
    with ExitStack() as stack:
        stack.enter_context(repeatable(train, device))
        timeout = collective_timeout(params.compute)
        stack.enter_context(joined(ranks, device, timeout))
        mesh = make_mesh(layout, device)
        tiers = stack.enter_context(open_cache(ws, zone))
        stream = stack.enter_context(open_stream(params, tiers, manifest, layout, "train", device, train=True))
        plain = config.build(params.seed).train()
        task = task.for_model(plain)
        parameters = sum(p.numel() for p in plain.parameters())
        traffic = Traffic(layout.world)
        parallelized = parallelize(plain, layout, mesh, train, device, precision)
        model = parallelized.model
        scaler = SharedScaler(device.type, enabled=precision.dtype is torch.float16)
        optimizer = build_optimizer(model, train)
        sampler = Sampler.of(device) if mesh is not None and ranks.leads else None
        gradient_sync = GradientSync.of(train.communication, parallelized.module, optimizer, mesh, traffic, sampler)
        place = find_place(ws, checkpoint_key(manifest.digest, params, digests(ws, "train"))[:16], ranks)
        saver = stack.enter_context(
            closing(Saver(place.zone, train.checkpoints, ranks, ranks.side_group(), model, optimizer))
        )
        hosts = ranks.host_group(device, timeout) if task.counts_vary else None
        steps = train.steps or stream.steps_until(float(train.epochs or 0))
        session = Session(
            params,
            Goal(task=task, config=config, steps=steps),
            Group(ranks=ranks, layout=layout, device=device, mesh=mesh, hosts=hosts),
            Data(zone=zone, tiers=tiers, manifest=manifest, stream=stream, validates=validates),
            Learner(
                model=model, parameters=parameters, runner=parallelized.runner, shared=parallelized.shared,
                optimizer=optimizer,                scaler=scaler, gradient_sync=gradient_sync, precision=precision,
            ),
            Checkpoints(saver=saver, place=place),
        )  # fmt: skip
        if train.ema is not None:
            session.average = Average(model, train.ema)
        session.restore(before)
        yield session


def aim(params: Params, manifest: Manifest) -> tuple[Task, ModelConfig]:
    """What the model is asked to do with this data, and what it will be. Raises DataError for a spec that no model
    could be loaded with afterwards."""
    spec, stream = manifest.header["spec"], params.stream
    if fault := why_malformed(spec):
        raise DataError(f"The shards manifest (version {manifest.digest[:12]}) is malformed: {fault}.")
    task = task_of(spec, stream.document_mask, counts_vary=stream.samples == "documents")
    seq_len = stream.seq_len if task.name == "language" else None
    config = ModelConfig(
        params.model.model_dump(), spec, seq_len, task.name, manifest.digest, stream.samples, stream.document_mask
    )
    return with_loss(task, params.train, spec), config


def _validates(params: Params, manifest: Manifest, seq_len: int | None) -> bool:
    """Whether there is a val split. Raises DataError without samples to train on, ParamsError for a vain patience."""
    if not samples_in(manifest, "train", seq_len):
        window = f" of {seq_len} tokens and the next one (stream.seq_len)" if seq_len else ""
        raise DataError(
            f"The shards (version {manifest.digest[:12]}) hold no training sample{window}: add sources, raise "
            "curate.split.train, or lower stream.seq_len."
        )
    if samples_in(manifest, "val", seq_len):
        return True
    if params.train.patience is not None:
        raise ParamsError(
            f"train.patience={params.train.patience} needs a val split, but the shards have none that is large enough: "
            "raise curate.split.val, or set train.patience to null."
        )
    return False


def samples_in(manifest: Manifest, split: str, seq_len: int | None, domain: str | None = None) -> int:
    """Samples of a split, or of one domain of it: rows (of whole documents, too), or sequences of `seq_len` tokens that
    have a next one."""
    shards = manifest.select(split, domain)
    if seq_len is None:
        return int(int64(shards["rows"]).sum())
    return int((np.maximum(int64(shards["tokens"]) - 1, 0) // seq_len).sum())
