"""The stream: an iterator of ready batches with a tiny state.

Batches are planned in blocks, gathered whole, and prepared ahead by one thread. The state counts what the consumer
has taken, not what was prepared, so it is exact at every step.
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args

import numpy as np

from pipelines.streaming.buckets import Bucketed
from pipelines.streaming.buffers import Allocate, allocate, buffers_from
from pipelines.streaming.dataset import AnyOrder, Dataset, JoinedOrder, Unit, same_fields
from pipelines.streaming.domains import mix_domains
from pipelines.streaming.fetch import DEFAULT_AHEAD, Fetcher
from pipelines.streaming.gather import DEFAULT_MEMORY, Gatherer
from pipelines.streaming.meter import Meter
from pipelines.streaming.mixture import Mixture, Weight
from pipelines.streaming.order import DEFAULT_WINDOW, Order
from pipelines.streaming.prefetch import Prefetcher, close_items
from pipelines.streaming.ramp import Epochs, Ramp, RampedOrder
from pipelines.streaming.source import Batch, Last, Source
from storage.cache import Tiered
from storage.digest import digest_json
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest

STATE_VERSION = 1


class Stream:
    """The batches of one split of a dataset, in the order of (seed, epoch), from the state on.

    `batch_size` is the global batch, of which this is the part of `rank` of `world`; with `batch_ramp` (step → size) it
    is the one that others grow to (see `ramp`). Tokens come as windows of `seq_len` + 1; with `documents`, also which
    document each token is of and where in it (see `fields.Tokens`). Where `samples` are documents, each comes whole,
    cut to so many tokens, and a batch is padded to a multiple of `pad_multiple` (see `whole_documents`). Samples that
    differ in length are sorted by it into the batches of blocks of `bucket_batches`, where that is above 1 and they are
    shuffled (see `buckets`). The last batch of an epoch is kept short, dropped, or padded with zeros and masked. With
    `epochs` the stream ends before that epoch, with None never. At least `prefetch` batches are prepared ahead in
    threads; with 0 there is no thread. Close it, use it as a context manager or forget it: no thread is left behind.

    Shards come through `tiers` (a cache of the lake), by default straight from `zone`; up to `ahead` bytes of those
    that aren't on this machine are fetched before they are needed, and up to `memory` bytes of those that aren't files
    here are held once they were. Arrays lie in memory of `allocate` (pinned, say),
    which is used again once nothing refers to them.

    Several datasets are mixed when zones and manifests are given by name: by `weights`, which may change with the step,
    in epochs of `steps` steps (see `mixture.Mixture`). `mixture` mixes the domains of one manifest by such weights;
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
        if samples not in get_args(Unit) or (documents and samples == "documents"):
            raise ValueError(
                f"samples={samples!r}: must be one of {', '.join(get_args(Unit))}; documents=True: windows"
            )
        if pad_multiple < 1 or bucket_batches < 1:
            raise ValueError(f"pad_multiple={pad_multiple}, bucket_batches={bucket_batches}: must be at least 1")
        cut = (split, seq_len, samples, pad_multiple)
        ramp = Ramp(batch_ramp or {0: batch_size}, batch_size)
        ordering: dict[str, Any] = {
            "batch": ramp if ramp.grows else batch_size,
            "seed": seed,
            "lanes": lanes,
            "window": window,
        }
        ordering |= {"keep_lanes": keep_lanes, "shuffle": shuffle}
        order: AnyOrder
        if isinstance(manifest, Manifest):
            if weights is not None or steps is not None or isinstance(zone, Mapping):
                raise ValueError("weights and steps are for a mixture: give zones and manifests by name")
            through = tiers if isinstance(tiers, Tiered) else Tiered(zone)
            datasets = {"": Dataset(through, manifest, *cut, domain)}
            if mixture is None:
                plain = Order(datasets[""].samples, first_window=first_window, **{**ordering, "batch": ramp.smallest})
                course = Epochs(ramp, plain.rows, "drop" if last == "drop" else "keep")
                order = RampedOrder(plain, course) if ramp.grows else plain
            else:
                datasets, order = mix_domains(datasets[""], mixture, first_window=first_window, **ordering)
                course = order.epochs
        else:
            if not isinstance(zone, Mapping) or set(zone) != set(manifest):
                raise ValueError(f"a mixture of {', '.join(manifest)} needs a zone for each, by the same names")
            if mixture is not None or domain is not None:
                raise ValueError("mixture and domain are for one dataset: give weights for several")
            behind = tiers if isinstance(tiers, Mapping) else {name: Tiered(zone[name]) for name in zone}
            datasets = {name: Dataset(behind[name], manifest[name], *cut) for name in manifest}
            rows = {name: dataset.samples for name, dataset in datasets.items()}
            mixed = Mixture(
                rows, weights or dict.fromkeys(rows, 1.0), steps=steps, first_window=first_window, **ordering
            )
            order, course = JoinedOrder(mixed, [len(part) for part in rows.values()]), mixed.epochs
        fetcher = Fetcher([(dataset.tiers, dataset.table) for dataset in datasets.values()], ahead)
        self.meter = Meter()
        counts = np.concatenate([dataset.samples for dataset in datasets.values()])
        gatherer = Gatherer(
            fetcher, counts, same_fields(datasets, documents), buffers_from(allocate), self.meter, memory
        )
        ordered: AnyOrder | Bucketed = order
        if bucket_batches > 1 and shuffle and gatherer.varies:
            if ramp.grows:
                raise ParamsError(
                    f"stream.bucket_batches={bucket_batches} sorts batches of one size, but stream.batch_ramp makes "
                    "them grow: set stream.bucket_batches to 1, or leave stream.batch_ramp out."
                )
            assert not isinstance(order, RampedOrder)
            ordered = Bucketed(order, bucket_batches, seed, gatherer.lengths)
        self._source = Source(ordered, course, gatherer, rank, world, last)
        self._digest = (
            manifest.digest
            if isinstance(manifest, Manifest)
            else digest_json({name: part.digest for name, part in manifest.items()})
        )
        self.rows = order.rows
        self.mixed = order if isinstance(order, JoinedOrder) else None
        self.split, self.seq_len, self.domain, self.unit = split, seq_len, domain, samples
        self.epochs, self.prefetch = epochs, prefetch
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] | None = None
        self._finalizer: weakref.finalize[[], Stream] | None = None
        self._process = os.getpid()
        self._epoch = self._step = 0
        if not course.complete:
            raise DataError(datasets[""].why_empty(batch_size))

    @property
    def order(self) -> AnyOrder | Bucketed:
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
            self._finalizer = weakref.finalize(self, prefetcher.close, wait=False)

    def _restart(self) -> None:
        """Forget what was prepared and end the thread."""
        finalizer, groups = self._finalizer, self._groups
        self._finalizer, self._groups = None, None  # first: a signal may cut off what follows
        self._ready.clear()
        if finalizer is not None:
            finalizer.detach()
        if groups is not None and self._process == os.getpid():
            close_items(groups)

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
        """Go to the start of `epoch`."""
        self._restart()
        self._move_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON values: `epoch` and `step` are of the next batch. The same on every rank, and
        valid for any number of ranks."""
        place = {"epoch": self._epoch, "step": self._step}
        return {"version": STATE_VERSION, **place, "digest": self._digest, "order": self._order_settings()}

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
        if state["digest"] != self._digest:
            raise DataError(
                f"The stream state was taken on data version {state['digest']}, but this is {self._digest}: "
                "the same step would be other samples. Check out that version of the data (git checkout and dvc "
                "checkout), or start anew without the checkpoint."
            )
        saved, own = state["order"], self._order_settings()
        differing = [name for name in {**own, **saved} if saved.get(name) != own.get(name)]
        if differing:
            raise ParamsError(
                "The stream state was taken in another order, so that the same step would be other samples: "
                + ", ".join(f"{name} was {saved.get(name)!r} and is {own.get(name)!r}" for name in differing)
                + ". Set it back, or start anew without the checkpoint."
            )
        self._restart()
        self._move_to(int(state["epoch"]), int(state["step"]))

    def _order_settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data."""
        unit: dict[str, str] = {} if self.unit == "windows" else {"stream.samples": self.unit}
        unit |= {} if self.domain is None else {"domain": self.domain}
        return {**self.order.settings(), "split": self.split, "stream.seq_len": self.seq_len, **unit}
