"""The stream: an iterator of ready batches with a tiny state.

Batches are planned in blocks, gathered whole, and prepared ahead by one thread where the consumer is busy. The state
counts what the consumer has taken, not what was prepared, so it is exact at every step.
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np

from pipelines.streaming.buffers import Allocate, allocate, buffers_from
from pipelines.streaming.dataset import Dataset, Unit, chosen, digest_of, same_fields
from pipelines.streaming.fetch import DEFAULT_AHEAD, Fetcher
from pipelines.streaming.gather import DEFAULT_MEMORY, Gatherer
from pipelines.streaming.meter import Meter
from pipelines.streaming.order import DEFAULT_WINDOW, Batches, Bucketed, Mixture, Order, Ramp, Rest, Weight
from pipelines.streaming.prefetch import Prefetcher, close_items
from pipelines.streaming.source import Batch, Source
from pipelines.streaming.state import place_in, state_at
from storage.cache import Tiered
from storage.errors import DataError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest

#: What becomes of an epoch's last batch where it is short.
Last = Literal["keep", "drop", "pad"]


class Stream:
    """The batches of one split of a dataset, in the order of (seed, epoch), from the state on.

    `batch_size` is the global batch, of which this is the part of `rank` of `world`; with `batch_ramp` (step → size) it
    is the one that others grow to (see `Order`). Tokens come as windows of `seq_len` + 1; with `documents`, also which
    document each token is of and where in it (see `Tokens`). Where `samples` are documents, each comes whole, cut to so
    many tokens, and a batch is padded to a multiple of `pad_multiple` (see `WholeDocuments`). Samples that differ in
    length are sorted by it into the batches of blocks of `bucket_batches`, where that is above 1 and they are shuffled
    (see `Bucketed`). The last batch of an epoch is kept short, dropped, or padded with zeros and masked. With `epochs`
    the stream ends before that epoch, with None never. At least `prefetch` batches are prepared ahead in a thread while
    the consumer is busy (see `Prefetcher`); with 0 there is no thread. Close it, use it as a context manager or forget
    it: no thread is left behind.

    Shards come through `tiers` (a cache of the lake), by default straight from `zone`; up to `ahead` bytes of those
    that aren't on this machine are fetched before they are needed, and up to `memory` bytes of those that aren't files
    here are held once they were. Arrays lie in memory of `allocate` (pinned, say), which is used again once nothing
    refers to them.

    Several datasets are mixed when zones and manifests are given by name: by `weights`, which may change with the step,
    in epochs of `steps` steps (see `Mixture`). `mixture` mixes the domains of one manifest by such weights;
    `domain` is the only one of them that is read.

    `stream[i]` is batch i of the current epoch and leaves the state alone, so that a stream is also a map-style
    dataset for `torch.utils.data.DataLoader(stream, batch_size=None)`; move on with `set_epoch`.

    `meter` tells where the time goes: `meter.snapshot()`. `rows` are the samples of an epoch; `mixed` is the order of a
    mixture, None of one dataset.
    """

    def __init__(
        self,
        zone: Zone | Mapping[str, Zone],
        manifest: Manifest | Mapping[str, Manifest],
        *,
        split: str,
        batch_size: int,
        seed: int,
        batch_ramp: Mapping[int, int] | None = None,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        seq_len: int | None = None,
        lanes: int | None = None,
        window: int = DEFAULT_WINDOW,
        first_window: int | None = None,
        keep_lanes: bool = False,
        last: Last = "keep",
        epochs: int | None = None,
        prefetch: int = 2,
        documents: bool = False,
        samples: Unit = "windows",
        pad_multiple: int = 1,
        bucket_batches: int = 1,
        weights: Mapping[str, Weight] | None = None,
        steps: int | None = None,
        mixture: Mapping[str, Weight] | None = None,
        domain: str | None = None,
        tiers: Tiered | Mapping[str, Tiered] | None = None,
        ahead: int = DEFAULT_AHEAD,
        memory: int = DEFAULT_MEMORY,
        allocate: Allocate = allocate,
    ) -> None:
        if last not in get_args(Last):
            raise ValueError(f"last={last!r}: must be one of {', '.join(get_args(Last))}")
        if bucket_batches < 1:
            raise ValueError(f"bucket_batches={bucket_batches}: must be at least 1")
        datasets, mixed_by = chosen(
            zone, manifest, tiers, weights=weights, steps=steps, mixture=mixture, domain=domain, split=split,
            seq_len=seq_len, unit=samples, documents=documents, multiple=pad_multiple,
        )  # fmt: skip
        ramp = Ramp(batch_ramp or {0: batch_size}, batch_size)
        order: Batches = _order_of(
            datasets, mixed_by, steps, "drop" if last == "drop" else "keep", batch=ramp, seed=seed, shuffle=shuffle,
            lanes=lanes, window=window, first_window=first_window, keep_lanes=keep_lanes,
        )  # fmt: skip
        fetcher = Fetcher([(dataset.tiers, dataset.table) for dataset in datasets.values()], ahead)
        counts = np.concatenate([dataset.samples for dataset in datasets.values()])
        self.rows, self.mixed, self.meter = order.rows, order if isinstance(order, Mixture) else None, Meter()
        buffers = buffers_from(allocate)
        gatherer = Gatherer(fetcher, counts, same_fields(datasets), buffers, self.meter, memory)
        if bucket_batches > 1 and shuffle and gatherer.varies:
            order = Bucketed(order, bucket_batches, seed, gatherer.lengths)
        self._source = Source(order, gatherer, rank, world, pad=last == "pad")
        self._digest = digest_of(manifest)
        self.split, self.seq_len, self.domain, self.unit = split, seq_len, domain, samples
        self.epochs, self.prefetch = epochs, prefetch
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] | None = None
        self._finalizer: weakref.finalize[[], Stream] | None = None
        self._process = os.getpid()
        self._epoch = self._step = 0

    @property
    def order(self) -> Batches:
        """Which samples come when."""
        return self._source.order

    def stored(self, shard: int) -> StoredObject:
        """What the lake holds of a shard, by its number in the order."""
        return self._source.gatherer.fetcher.stored(shard)

    # -- iteration -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the current epoch: as many in each one, unless the batch grows."""
        return self.steps_of(self._epoch)

    def steps_of(self, epoch: int) -> int:
        """Batches of `epoch`."""
        return self._source.epochs.steps(epoch)

    def steps_until(self, epochs: float) -> int:
        """Batches of so many epochs, rounded up."""
        return self._source.epochs.until(epochs)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, batch in it) of step `step` of a training that took all batches from the first one on."""
        return self._source.epochs.place(step)

    def batch_size(self, step: int) -> int:
        """Samples of a full global batch at step `step` of such a training."""
        return self._source.epochs.ramp.size(step)

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
            self.meter.count(batches=len(group), samples=sum(batch.count for batch in group))
            return group
        except BaseException:  # whatever it was, the next call goes on from the state
            self._restart()
            raise
        finally:
            self.meter.count(wait=time.perf_counter() - begun)

    def _start(self) -> None:
        source, self._process = self._source, os.getpid()
        groups = source.groups(self._epoch, self._step, self.epochs, ahead=self.prefetch > 0)
        if self.prefetch:
            depth, at_once = self.prefetch * source.parts, source.makers > 1
            stop = source.gatherer.fetcher.interrupt
            self._groups = prefetcher = Prefetcher(groups, depth, source.load, at_once=at_once, interrupt=stop)
            self._finalizer = weakref.finalize(self, prefetcher.close, wait=False)
        else:
            self._groups = (source.load(group) for group in groups)

    def _restart(self) -> None:
        """Forget what was prepared and end the thread."""
        finalizer, groups = self._finalizer, self._groups
        self._finalizer, self._groups = None, None  # first: a signal may cut off what follows
        self._ready.clear()
        if finalizer is not None:
            finalizer.detach()
        if groups is not None and self._process == os.getpid():
            close_items(groups)
            self._source.gatherer.fetcher.stop()

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
        self._epoch, self._step = (epoch, step) if step < self.steps_of(epoch) else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`. Where the stream is there already, what it has prepared is kept."""
        if (self._epoch, self._step) != (epoch, 0):
            self._restart()
            self._move_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON values: `epoch` and `step` are of the next batch. The same on every rank, and
        valid for any number of ranks."""
        return state_at(self._epoch, self._step, self._digest, self._order_settings())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises FormatError for a state of an unknown version, DataError when it is of other data, ParamsError when the
        order was another one. Then the stream stays where it is.
        """
        epoch, step = place_in(state, self._digest, self._order_settings())
        self._restart()
        self._move_to(epoch, step)

    def _order_settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data."""
        unit: dict[str, str] = {} if self.unit == "windows" else {"stream.samples": self.unit}
        unit |= {} if self.domain is None else {"domain": self.domain}
        return {**self.order.settings(), "split": self.split, "stream.seq_len": self.seq_len, **unit}


def _order_of(
    datasets: Mapping[str, Dataset],
    weights: Mapping[str, Weight] | None,
    steps: int | None,
    rest: Rest,
    **ordering: Any,
) -> Order | Mixture:
    """The order of one dataset, or of several that are mixed. Raises DataError where it hasn't one batch."""
    rows = {name: dataset.samples for name, dataset in datasets.items()}
    if weights is not None:
        return Mixture(rows, weights, steps=steps, **ordering)
    (dataset,) = datasets.values()
    order = Order(dataset.samples, rest=rest, **ordering)
    if not order.epochs.complete:
        raise DataError(dataset.why_empty(order.batch_size))
    return order
