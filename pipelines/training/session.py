"""One rank's training, put together: model, optimiser, data, state and checkpoints."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipelines.caches import open_cache
from pipelines.models import ModelConfig, Task, task_of
from pipelines.models.saved import weights
from pipelines.params import Params
from pipelines.streaming import Stream
from pipelines.training.checkpoints import Checkpoint, Checkpoints, checkpoint_key
from pipelines.training.device import Precision, host_memory, pick_device, repeatable
from pipelines.training.network import Exchange, Wire
from pipelines.training.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from pipelines.training.parallelism import Layout, Runner, SharedScaler, arrange, clip_, full_weights, make_mesh
from pipelines.training.pulse import collective_timeout
from pipelines.training.ranks import Ranks, joined
from pipelines.training.state import TrainState
from pipelines.workspace import Workspace
from storage.cache import Tiered
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest

_MIB = 1 << 20


@dataclass
class Session:
    """What the loop works on. `model` holds this rank's parameters; `runner` runs it together with the other
    ranks. See `pipelines.training.parallelism` for what holds of `layout`, `mesh` and `model`."""

    params: Params
    ranks: Ranks
    layout: Layout
    mesh: DeviceMesh | None
    device: torch.device
    precision: Precision
    task: Task
    config: ModelConfig
    model: nn.Module
    runner: Runner
    exchange: Exchange
    shared: list[Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    zone: Zone
    tiers: Tiered
    manifest: Manifest
    stream: Stream
    steps: int
    samples: int
    parameters: int
    validates: bool
    checkpoints: Checkpoints
    state: TrainState = field(default_factory=TrainState)
    best: dict[str, Tensor] = field(default_factory=dict)
    _saved: int = 0

    def done(self) -> bool:
        """Whether all steps are done, or early stopping's patience is out."""
        patience = self.params.train.patience
        return self.state.step >= self.steps or (patience is not None and self.state.stale >= patience)

    def validation_due(self) -> bool:
        step = self.state.step
        due = step % self.params.train.eval_every == 0 or step == self.steps
        return self.validates and due and step > self.state.validated

    def checkpoint_due(self) -> bool:
        return self.state.step % self.params.train.checkpoint_every == 0 and self.state.step > self._saved

    def clip(self) -> Tensor:
        """Bound the gradient's norm, over all ranks' pieces of it, by train.clip_norm. Returns the norm before."""
        limit = self.params.train.clip_norm
        return clip_(self.model.parameters(), limit, self.layout, self.ranks, self.device, self.shared)

    @contextmanager
    def val_stream(self) -> Iterator[Stream]:
        """The val split in its stored order, once."""
        with open_stream(self.params, self.tiers, self.manifest, self.layout, "val", self.device) as stream:
            yield stream

    def note_validation(self, summary: dict[str, float]) -> None:
        """Take an evaluation into the state; keep the weights when they are the best and early stopping wants them."""
        best = self.state.add_validation(summary)
        if best and self.params.train.patience is not None:
            self.best = full_weights(self.model, self.layout, self.mesh)

    def final_weights(self) -> dict[str, Tensor]:
        """The best weights where early stopping is on, else the last ones, on rank 0. All ranks call it together."""
        weights = full_weights(self.model, self.layout, self.mesh)
        return self.best or weights

    def save(self) -> None:
        """Write a checkpoint of this moment (rank 0), and wait until it is there (all)."""
        if self.ranks.leads:
            tensors = {
                "model": weights(self.model),
                "optimizer": optimizer_tensors(self.model, self.optimizer),
                "best": self.best,
                "momentum": self.exchange.momentum,
            }
            values = {
                "train": self.state.to_json(),
                "stream": self.stream.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            self.checkpoints.save(self.state.step, Checkpoint(tensors, values))
        self._saved = self.state.step
        self.ranks.wait()

    def restore(self, before: int | None = None) -> bool:
        """Go back to the newest checkpoint (of a step before `before`); False when there is none."""
        if self.ranks.leads and before is None:
            self.checkpoints.sweep()
        folder = self.ranks.share(self.checkpoints.latest(before) if self.ranks.leads else None)
        if folder is None:
            return False
        saved = self.checkpoints.load(folder)
        try:
            self.model.load_state_dict(saved.tensors["model"])
            load_optimizer_tensors(self.model, self.optimizer, saved.tensors.get("optimizer", {}))
        except (RuntimeError, KeyError) as error:
            raise FormatError(
                f"{folder}: this checkpoint doesn't fit the model: its code changed since. "
                f"Go back to that code, or delete {folder.parent} to train from the start. {error}"
            ) from error
        self.exchange.load(saved.tensors.get("momentum", {}))
        self.best = saved.tensors.get("best", {}) if self.ranks.leads else {}
        self.state = TrainState.from_json(saved.state["train"])
        self.stream.load_state_dict(saved.state["stream"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved.state["scaler"])
        self._saved = self.state.step
        return True


def open_stream(
    params: Params,
    tiers: Tiered,
    manifest: Manifest,
    layout: Layout,
    split: str,
    device: torch.device,
    *,
    train: bool = False,
) -> Stream:
    """This rank's part of a split: shuffled and endless for training, else once in the stored order."""
    settings, compute = params.stream, params.compute
    return Stream(
        tiers.zone, manifest, split=split, batch_size=settings.batch_size, seed=params.seed, shuffle=train,
        rank=layout.data_rank, world=layout.data_world,
        seq_len=settings.seq_len if manifest.header["kind"] == "tokens" else None,
        lanes=settings.lanes, window=settings.window, first_window=settings.first_window,
        keep_lanes=settings.keep_lanes, epochs=None if train else 1, prefetch=compute.prefetch,
        tiers=tiers, ahead=round(compute.ahead_mb * _MIB), memory=round(compute.memory_mb * _MIB),
        allocate=host_memory(device),
    )  # fmt: skip


@contextmanager
def open_session(ws: Workspace, ranks: Ranks, *, before: int | None = None) -> Iterator[Session]:
    """Everything of a training, at its start or where its last checkpoint was (with `before`: the last one that comes
    before that step); closed at the end."""
    params, train = ws.params, ws.params.train
    zone = ws.zone("shards")
    manifest = zone.manifest()
    task = task_of(manifest.header["spec"])
    seq_len = params.stream.seq_len if task.name == "language" else None
    config = ModelConfig(params.model.model_dump(), manifest.header["spec"], seq_len, task.name, manifest.digest)
    validates = _validates(params, manifest, seq_len)
    device = pick_device(train.device, ranks.local_rank)
    precision = Precision.choose(train.precision, device)
    layout = Layout.of(params, ranks.world, ranks.rank)
    with ExitStack() as stack:
        stack.enter_context(repeatable(train, device))
        stack.enter_context(joined(ranks, device, collective_timeout(params.compute)))
        mesh = make_mesh(layout, device)
        tiers = stack.enter_context(open_cache(ws, zone))
        stream = stack.enter_context(open_stream(params, tiers, manifest, layout, "train", device, train=True))
        plain = config.build(params.seed).train()
        parameters = sum(p.numel() for p in plain.parameters())
        wire = Wire(layout.world)
        arranged = arrange(plain, layout, mesh, train, device, precision, wire)
        model = arranged.model
        scaler = SharedScaler(device.type, enabled=precision.dtype is torch.float16)
        optimizer = build_optimizer(model, train)
        exchange = Exchange.of(train.network, arranged.module, optimizer, mesh, wire)
        session = Session(
            params, ranks, layout, mesh, device, precision, task, config, model, arranged.runner, exchange,
            arranged.shared, optimizer, scaler, zone, tiers, manifest, stream, validates=validates,
            samples=samples_in(manifest, "train", seq_len), parameters=parameters,
            steps=train.steps or ceil(float(train.epochs or 0) * len(stream)),
            checkpoints=Checkpoints(ws.state / "checkpoints" / checkpoint_key(manifest.digest, params)[:16]),
        )  # fmt: skip
        session.restore(before)
        yield session


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


def samples_in(manifest: Manifest, split: str, seq_len: int | None) -> int:
    """Samples of a split: rows, or windows of `seq_len` tokens that have a next one."""
    if seq_len is None:
        return sum(rows for rows in manifest.select(split)["rows"].to_pylist())
    return sum(max(0, tokens - 1) // seq_len for tokens in manifest.select(split)["tokens"].to_pylist())
