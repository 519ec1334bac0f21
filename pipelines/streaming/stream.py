"""The stream: an iterator of ready batches with a tiny state.

Batches are planned in blocks, gathered whole, and prepared ahead by one thread. The state counts what the consumer
has taken, not what was prepared, so it is exact at every step.
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import pyarrow as pa

from pipelines.streaming.buffers import Allocate, Buffers, allocate
from pipelines.streaming.decode import Decoder
from pipelines.streaming.fetch import DEFAULT_AHEAD, Fetcher
from pipelines.streaming.fields import Arrays, Blobs, Field, Fixed, Images, Tokens
from pipelines.streaming.gather import Block, Gatherer
from pipelines.streaming.meter import Meter
from pipelines.streaming.order import DEFAULT_WINDOW, Ints, Order
from pipelines.streaming.prefetch import Prefetcher, close_items
from storage.cache.tiered import Tiered
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Column
from storage.shards.schema import IMAGE

STATE_VERSION = 1
Last = Literal["keep", "drop", "pad"]

_PLANNED = 16_384  # samples planned at once
_HANDED_OVER = 1 << 20  # bytes up to which small batches are gathered and handed over together
_RESERVED = 6  # groups that are alive at once: made, handed over, in use

_Plan = tuple[int, int, int, Block]  # epoch, first step, number of batches, and their samples


class Batch(Arrays):
    """This rank's part of a global batch: arrays [n, …] by name, `size` samples in the global batch, and its place.

    Arrays are this batch's own for as long as anything refers to them, and speak DLPack. With `last="pad"` there is
    also `mask`, bool [n].
    """

    def __init__(self, arrays: Arrays, epoch: int, step: int, size: int, origin: tuple[Gatherer, Ints, Ints]) -> None:
        super().__init__(arrays)
        self.epoch, self.step, self.size = epoch, step, size
        self._origin: tuple[Gatherer, Ints, Ints] | list[str] = origin

    @property
    def arrays(self) -> Arrays:
        return self

    def ids(self) -> list[str]:
        """The names of the samples, without those that only pad."""
        if isinstance(self._origin, tuple):
            gatherer, shard, row = self._origin
            return gatherer.ids(shard, row)
        return self._origin

    def __copy__(self) -> "Batch":
        batch = Batch.__new__(Batch)
        batch.update(self)
        batch.__dict__.update(self.__dict__)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with the names of its samples instead of what could look them up."""
        return {**self.__dict__, "_origin": self.ids()}


class _Source:
    """Makes batches of any place in the order. It doesn't know the stream, so that the threads keep none alive."""

    def __init__(self, order: Order, gatherer: Gatherer, rank: int, world: int, last: Last) -> None:
        self.order, self.gatherer, self.rank, self.world, self.last = order, gatherer, rank, world, last
        self.steps = order.full_steps if last == "drop" else order.steps
        slots = order.slots(rank, world)
        self.share = slots.stop - slots.start  # samples of a full batch that are this rank's
        nbytes = self.share * sum(field.nbytes for field in gatherer.fields)
        self._together = max(1, _HANDED_OVER // max(1, nbytes))
        self._planned = max(1, _PLANNED // self.share // self._together) * self._together

    def groups(self, epoch: int, step: int, epochs: int | None, ahead: bool) -> Iterator[list[Batch]]:
        """All batches from (epoch, step) on, as lists of a few; with `ahead`, planned in a thread."""
        fetcher = self.gatherer.fetcher
        self.gatherer.reserve(self.share * self._together, _RESERVED)
        plans = self._plans(epoch, step, epochs)
        if ahead:
            fetcher.start(self._shards_ahead(epoch, step, epochs), self.gatherer.is_open)
            plans = Prefetcher(plans, 1, "shardline-plan")
        try:
            together = 1  # so that the first batch comes soon
            for at, first, count, block in plans:
                fetcher.reached(at)
                for start in range(0, count, together):
                    yield self.load(at, first + start, min(together, count - start), block, start)
                together = self._together
        finally:
            close_items(plans)
            fetcher.stop()

    def _plans(self, epoch: int, step: int, epochs: int | None) -> Iterator[_Plan]:
        """Blocks of batches with their shards open. Raises what keeps a batch from being had, after those before it."""
        for at, first, planned, shard, row in self._order(epoch, step, epochs):
            block = self.gatherer.locate(shard, row)
            count = planned if block.error is None else len(block.samples.row) // self.share
            if count:
                yield at, first, count, block
            if block.error is not None:
                raise block.error

    def _order(self, epoch: int, step: int, epochs: int | None) -> Iterator[tuple[int, int, int, Ints, Ints]]:
        """(epoch, first step, number of batches, shard, row) of some batches at a time; of few at first."""
        planned = self._together
        while epochs is None or epoch < epochs:
            while step < self.steps:
                count = min(planned, self.steps - step)
                with self.gatherer.meter.time("plan"):
                    shard, row = self.order.block(epoch, step, count, self.rank, self.world)
                yield epoch, step, count, shard, row
                step, planned = step + count, self._planned
            epoch, step = epoch + 1, 0

    def _shards_ahead(self, epoch: int, step: int, epochs: int | None) -> Iterator[tuple[int, Ints]]:
        """(epoch, shards) in the order in which this rank needs them."""
        while epochs is None or epoch < epochs:
            for shards in self.order.ahead(epoch, step, self.rank, self.world):
                yield epoch, shards
            epoch, step = epoch + 1, 0

    def load(self, epoch: int, step: int, count: int, block: Block, first: int = 0) -> list[Batch]:
        """Batches `step` … `step + count - 1`, which are those from `first` on of `block`."""
        gatherer, share, samples = self.gatherer, self.share, block.samples
        part = slice(first * share, (first + count) * share)
        arrays = gatherer.gather(block, part)
        shard, row = samples.shard[part], samples.row[part]
        batches = []
        for index in range(count):
            part = slice(index * share, min((index + 1) * share, len(row)))
            origin = (gatherer, shard[part], row[part])
            own = arrays if count == 1 else gatherer.part(arrays, part.start, part.stop)
            if self.last == "pad":
                own = gatherer.padded(own, len(origin[1]), share)
            batches.append(Batch(own, epoch, step + index, self.order.size(step + index), origin))
        return batches

    def batch(self, epoch: int, step: int) -> Batch:
        """One batch."""
        block = self.gatherer.locate(*self.order.batch(epoch, step, self.rank, self.world))
        if block.error is not None:
            raise block.error
        return self.load(epoch, step, 1, block)[0]


class Stream:
    """The batches of one split of a dataset, in the order of (seed, epoch), from the state on.

    `batch_size` is the global batch, of which this is the part of `rank` of `world`. Tokens come as windows of
    `seq_len` + 1; with `documents`, also which document each token is of and where in it (see `fields.Windows`). The
    last batch of an epoch is kept short, dropped, or padded with zeros and masked. With `epochs` the stream ends before
    that epoch, with None never. At least `prefetch` batches are prepared ahead in threads; with 0 there is no thread.
    Close it, use it as a context manager or forget it: no thread is left behind.

    Shards come through `tiers` (a cache of the lake), by default straight from `zone`; up to `ahead` bytes of those
    that aren't on this machine are fetched before they are needed. Arrays lie in memory of `allocate` (pinned, say),
    which is used again once nothing refers to them.

    `stream[i]` is batch i of the current epoch and leaves the state alone, so that a stream is also a map-style
    dataset for `torch.utils.data.DataLoader(stream, batch_size=None)`; move on with `set_epoch`.

    `meter` tells where the time goes: `meter.snapshot()`.
    """

    def __init__(
        self,
        zone: Zone,
        manifest: Manifest,
        *,
        split: str,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        seq_len: int | None = None,
        lanes: int | None = None,
        window: int = DEFAULT_WINDOW,
        keep_lanes: bool = False,
        last: Last = "keep",
        epochs: int | None = None,
        prefetch: int = 2,
        documents: bool = False,
        tiers: Tiered | None = None,
        ahead: int = DEFAULT_AHEAD,
        allocate: Allocate = allocate,
    ) -> None:
        if last not in get_args(Last):
            raise ValueError(f"last={last!r}: must be one of {', '.join(get_args(Last))}")
        samples = _samples(manifest, split, seq_len)
        order = Order(
            samples, batch=batch_size, seed=seed, lanes=lanes, window=window, keep_lanes=keep_lanes, shuffle=shuffle
        )
        fetcher = Fetcher(tiers or Tiered(zone), manifest.select(split), ahead)
        self.meter = Meter()
        gatherer = Gatherer(
            fetcher, samples, _fields(manifest, split, seq_len, documents), Buffers(allocate), self.meter
        )
        self._source = _Source(order, gatherer, rank, world, last)
        self.manifest, self.split, self.seq_len = manifest, split, seq_len
        self.epochs, self.prefetch = epochs, prefetch
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] | None = None
        self._finalizer: weakref.finalize[[], Stream] | None = None
        self._process = os.getpid()
        self._epoch = self._step = 0
        if not len(self):
            raise DataError(_why_empty(zone, manifest, split, order.rows, batch_size, seq_len))

    @property
    def order(self) -> Order:
        """Which samples come when."""
        return self._source.order

    # -- iteration -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._source.steps

    def __getitem__(self, index: int) -> Batch:
        """Batch `index` of the current epoch."""
        step = index + len(self) if index < 0 else index
        if not 0 <= step < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        return self._source.batch(self._epoch, step)

    def __iter__(self) -> Self:
        """The stream itself, which goes on from its state."""
        return self

    @property
    def wait_seconds(self) -> float:
        """How long the consumer has waited for batches."""
        return self.meter.wait

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready.extend(self._next_group())
        batch = self._ready.popleft()
        self._move_to(batch.epoch, batch.step + 1)
        return batch

    def _next_group(self) -> list[Batch]:
        if self.epochs is not None and self._epoch >= self.epochs:
            self._restart()
            raise StopIteration
        if self._groups is None or self._process != os.getpid():  # after a fork, the thread is the parent's
            self._start()
            assert self._groups is not None
        begun = time.perf_counter()
        try:
            group = next(self._groups)
            self.meter.batches += len(group)
            self.meter.samples += sum(batch.size for batch in group)
            return group
        except BaseException:  # whatever it was, the next call goes on from the state
            self._restart()
            raise
        finally:
            self.meter.wait += time.perf_counter() - begun

    def _start(self) -> None:
        groups = self._source.groups(self._epoch, self._step, self.epochs, ahead=self.prefetch > 0)
        self._groups, self._process = groups, os.getpid()
        if self.prefetch:
            self._groups = prefetcher = Prefetcher(groups, self.prefetch)
            self._finalizer = weakref.finalize(self, prefetcher.close)

    def _restart(self) -> None:
        """Forget what was prepared and end the thread."""
        if self._finalizer is not None:
            self._finalizer()
        elif self._groups is not None and self._process == os.getpid():
            close_items(self._groups)
        self._finalizer, self._groups = None, None
        self._ready.clear()

    def close(self) -> None:
        """End the thread and let go of the shards. Iterating again goes on from the state."""
        self._restart()
        self._source.gatherer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": deque(), "_groups": None, "_finalizer": None}

    # -- state ---------------------------------------------------------------------------------------------------

    def _move_to(self, epoch: int, step: int) -> None:
        self._epoch, self._step = (epoch, step) if step < len(self) else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self._restart()
        self._move_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON values: `epoch` and `step` are of the next batch. The same on every rank, and
        valid for any number of ranks."""
        place = {"epoch": self._epoch, "step": self._step}
        return {"version": STATE_VERSION, **place, "digest": self.manifest.digest, "order": self._order_settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises FormatError for a state of an unknown version, DataError when it is of other data, ParamsError when the
        order was another one. Then the stream stays where it is.
        """
        if state.get("version") != STATE_VERSION:
            raise FormatError(
                f"Stream state of version {state.get('version')!r}, but this Shardline reads {STATE_VERSION} only. "
                "Use the Shardline that wrote it, or start anew without the checkpoint."
            )
        if state["digest"] != self.manifest.digest:
            raise DataError(
                f"The stream state was taken on data version {state['digest']}, but this is {self.manifest.digest}: "
                "the same step would be other samples. Check out that version of the data (git checkout and dvc "
                "checkout), or start anew without the checkpoint."
            )
        saved, own = state["order"], self._order_settings()
        differing = [name for name in own if saved.get(name) != own[name]]
        if differing:
            raise ParamsError(
                "The stream state was taken in another order, so that the same step would be other samples: "
                + ", ".join(f"{name} was {saved.get(name)!r} and is {own[name]!r}" for name in differing)
                + ". Set it back, or start anew without the checkpoint."
            )
        self._restart()
        self._move_to(int(state["epoch"]), int(state["step"]))

    def _order_settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data."""
        return {**self.order.settings(), "split": self.split, "stream.seq_len": self.seq_len}


def _samples(manifest: Manifest, split: str, seq_len: int | None) -> Ints:
    """Samples in each shard of the split, int64 [shards]: rows, or windows of seq_len tokens that have a next one."""
    table = manifest.select(split)
    if manifest.header["kind"] != "tokens":
        return _int64(table["rows"])
    if seq_len is None:
        raise ParamsError("These shards hold tokens, so the stream needs a sequence length: set stream.seq_len.")
    return np.maximum(_int64(table["tokens"]) - 1, 0) // seq_len


def _int64(column: pa.ChunkedArray) -> Ints:
    values: Ints = column.to_numpy().astype(np.int64)
    return values


def _fields(manifest: Manifest, split: str, seq_len: int | None, documents: bool) -> tuple[Field, ...]:
    """What the manifest says of the columns that make a batch."""
    spec = manifest.header["spec"]
    if manifest.header["kind"] == "tokens":
        return (Tokens.of("tokens", spec["dtype"], seq_len or 0, documents),)
    columns = dict(spec["inputs"])
    if target := spec.get("target"):
        columns[target["name"]] = target
    return tuple(_field(manifest, split, name, facts) for name, facts in columns.items())


def _field(manifest: Manifest, split: str, name: str, facts: Mapping[str, Any]) -> Field:
    shape = tuple(facts.get("shape") or ())
    column = Column(np.dtype(facts["dtype"]), shape, facts.get("codec", "raw"))
    if not column.variable:
        return Fixed(name, column)
    if column.codec == IMAGE and shape:
        return Images(name, column, Decoder(shape))
    table = manifest.select(split)
    rows = sum(table["rows"].to_pylist())
    return Blobs(name, column, sum(table["bytes"].to_pylist()) / max(1, rows))


def _why_empty(zone: Zone, manifest: Manifest, split: str, rows: int, batch_size: int, seq_len: int | None) -> str:
    where = f"{zone.describe()} (version {manifest.digest[:12]}): split {split!r}"
    if split not in manifest.splits:
        known = ", ".join(manifest.splits) or "none"
        return f"{where} has no shards; there are: {known}. Raise curate.split.{split}, or add sources."
    if rows:
        return (
            f"{where} has {rows} samples, fewer than one batch of {batch_size}, and last='drop' drops the rest. "
            f"Lower stream.batch_size to {rows} or less, keep the last batch, or raise curate.split.{split}."
        )
    if seq_len is not None:
        return (
            f"{where} has no window of {seq_len} tokens and the next one. "
            f"Lower stream.seq_len, raise curate.split.{split}, or add sources."
        )
    return f"{where} is empty. Raise curate.split.{split}, or add sources."
