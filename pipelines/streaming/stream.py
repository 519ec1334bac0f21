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

from pipelines.streaming.gather import Arrays, Field, Gatherer
from pipelines.streaming.order import DEFAULT_WINDOW, ORDER_VERSION, Ints, Order
from pipelines.streaming.prefetch import Prefetcher
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest

STATE_VERSION = 1
Last = Literal["keep", "drop", "pad"]

_PLANNED = 16_384  # samples planned at once
_HANDED_OVER = 1 << 20  # bytes up to which small batches are gathered and handed over together


class Batch(Arrays):
    """This rank's part of a global batch: arrays [n, …] by name, `size` samples in the global batch, and its place.

    Arrays are new for each batch and may be kept. With `last="pad"` there is also `mask`, bool [n].
    """

    def __init__(
        self, arrays: Arrays, *, epoch: int, step: int, size: int, origin: tuple[Gatherer, Ints, Ints]
    ) -> None:
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
    """Makes batches of any place in the order. It doesn't know the stream, so that the thread keeps none alive."""

    def __init__(self, order: Order, gatherer: Gatherer, rank: int, world: int, last: Last) -> None:
        self.order, self.gatherer, self.rank, self.world, self.last = order, gatherer, rank, world, last
        self.steps = order.full_steps if last == "drop" else order.steps
        slots = order.slots(rank, world)
        self.share = slots.stop - slots.start  # samples of a full batch that are this rank's
        nbytes = self.share * sum(field.nbytes for field in gatherer.fields)
        self._together = max(1, _HANDED_OVER // max(1, nbytes))
        self._planned = max(1, _PLANNED // self.share // self._together) * self._together

    def groups(self, epoch: int, step: int, epochs: int | None) -> Iterator[list[Batch]]:
        """All batches from (epoch, step) on, as lists of a few."""
        while epochs is None or epoch < epochs:
            for first in range(step, self.steps, self._planned):
                count = min(self._planned, self.steps - first)
                shard, row = self.order.block(epoch, first, count, self.rank, self.world)
                for start in range(0, count, self._together):
                    part = slice(start * self.share, (start + self._together) * self.share)
                    yield self.load(epoch, first + start, min(self._together, count - start), shard[part], row[part])
            epoch, step = epoch + 1, 0

    def load(self, epoch: int, step: int, count: int, shard: Ints, row: Ints) -> list[Batch]:
        """Batches `step` … `step + count - 1`, whose samples are at (shard, row)."""
        arrays = self.gatherer.take(shard, row)
        batches = []
        for index in range(count):
            part = slice(index * self.share, (index + 1) * self.share)
            origin = (self.gatherer, shard[part], row[part])
            own = {name: values[part] for name, values in arrays.items()}
            if self.last == "pad":
                own = _pad(own, len(origin[1]), self.share)
            size = self.order.size(step + index)
            batches.append(Batch(own, epoch=epoch, step=step + index, size=size, origin=origin))
        return batches


def _pad(arrays: Arrays, count: int, share: int) -> Arrays:
    """`arrays` of `count` samples lengthened with zeros to `share`, and `mask`, bool [share], of the real ones."""
    mask = np.arange(share) < count
    if count < share:
        arrays = {
            name: np.concatenate([values, np.zeros((share - count, *values.shape[1:]), values.dtype)])
            for name, values in arrays.items()
        }
    return {**arrays, "mask": mask}


class Stream:
    """The batches of one split of a dataset, in the order of (seed, epoch), from the state on.

    `batch_size` is the global batch, of which this is the part of `rank` of `world`. Tokens come as windows of
    `seq_len` + 1. The last batch of an epoch is kept short, dropped, or padded with zeros and masked. With `epochs` the
    stream ends before that epoch, with None never. At least `prefetch` batches are prepared ahead in a thread; with 0
    there is no thread. Close it, use it as a context manager or forget it: no thread is left behind.

    `stream[i]` is batch i of the current epoch and leaves the state alone, so that a stream is also a map-style
    dataset for `torch.utils.data.DataLoader(stream, batch_size=None)`; move on with `set_epoch`.

    `wait_seconds` is how long the consumer has waited for batches.
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
        last: Last = "keep",
        epochs: int | None = None,
        prefetch: int = 2,
    ) -> None:
        if last not in get_args(Last):
            raise ValueError(f"last={last!r}: must be one of {', '.join(get_args(Last))}")
        samples = _samples(manifest, split, seq_len)
        order = Order(samples, batch=batch_size, seed=seed, lanes=lanes, window=window, shuffle=shuffle)
        gatherer = Gatherer(zone, manifest.select(split), samples, _fields(manifest, seq_len))
        self._source = _Source(order, gatherer, rank, world, last)
        self.manifest, self.split, self.seq_len = manifest, split, seq_len
        self.epochs, self.prefetch = epochs, prefetch
        self.wait_seconds = 0.0
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] | None = None
        self._finalizer: weakref.finalize[[], Stream] | None = None
        self._process = os.getpid()
        self._epoch = self._step = 0
        if not len(self):
            raise DataError(_why_empty(zone, manifest, split, order.rows, batch_size, seq_len))

    # -- iteration -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._source.steps

    def __getitem__(self, index: int) -> Batch:
        """Batch `index` of the current epoch."""
        step = index + len(self) if index < 0 else index
        if not 0 <= step < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        source = self._source
        shard, row = source.order.batch(self._epoch, step, source.rank, source.world)
        return source.load(self._epoch, step, 1, shard, row)[0]

    def __iter__(self) -> Self:
        """The stream itself, which goes on from its state."""
        return self

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
            return next(self._groups)
        except BaseException:  # whatever it was, the next call goes on from the state
            self._restart()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - begun

    def _start(self) -> None:
        self._groups = groups = self._source.groups(self._epoch, self._step, self.epochs)
        self._process = os.getpid()
        if self.prefetch:
            self._groups = prefetcher = Prefetcher(groups, self.prefetch)
            self._finalizer = weakref.finalize(self, prefetcher.close)

    def _restart(self) -> None:
        """Forget what was prepared and end the thread."""
        if self._finalizer is not None:
            self._finalizer()
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
        order = self._source.order
        return {
            "order version": ORDER_VERSION,
            "seed": order.seed,
            "split": self.split,
            "stream.batch_size": order.batch_size,
            "stream.lanes": order.lanes,
            "stream.window": order.window,
            "stream.seq_len": self.seq_len,
            "shuffle": order.shuffle,
        }


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


def _fields(manifest: Manifest, seq_len: int | None) -> tuple[Field, ...]:
    """What the manifest says of the columns that make a batch."""
    spec = manifest.header["spec"]
    if manifest.header["kind"] == "tokens":
        return (Field.of_tokens("tokens", spec["dtype"], seq_len or 0),)
    inputs = [Field.of_samples(name, facts["dtype"], tuple(facts["shape"])) for name, facts in spec["inputs"].items()]
    target = spec.get("target")
    return (*inputs, Field.of_samples(target["name"], target["dtype"])) if target else tuple(inputs)


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
