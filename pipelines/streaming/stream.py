"""The stream: ready batches in order, and a tiny state.

Batches are planned in blocks, gathered whole, and prepared ahead by one thread where the consumer is busy. The state
counts what the consumer has taken, not what was prepared, so it is exact at every step.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Self, Unpack

import numpy as np

from pipelines.streaming.dataset import chosen, digest_of, order_of, same_fields
from pipelines.streaming.feed import Feed
from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather.buffers import buffers_from
from pipelines.streaming.gather.gatherer import Gatherer
from pipelines.streaming.meter import Meter
from pipelines.streaming.options import Parts, check_options, complete, whole
from pipelines.streaming.order import Batches, Bucketed, Mixture, Ramp
from pipelines.streaming.source import Batch, Source
from pipelines.streaming.state import State, check_epoch
from storage.errors import Cancelled, ParamsError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest


class Stream:
    """The batches of one split of a dataset, in the order of (seed, epoch), from the state on.

    `batch_size` is the global batch, of which this is the part of `rank` of `world`. What else may be said has its
    place in a part: `order` (how samples are put in order), `batching` (how batches are filled), `text` (what is a
    sample of it), `mixing` (of domains, or of several datasets given by name), `loading` (how this process comes by its
    batches). Close it, use it as a context manager or forget it: no thread is left behind.

    A loop goes on from the state, and ends before epoch `epochs`, or never where that is None. One that begins at that
    end begins anew, but for the first one after a state of the end was loaded: nothing was left, so there is nothing.
    A loop that was broken off or that raised is gone on with by the next one. Threads may take from one stream: each
    batch goes to one of them.

    `meter` tells where the time goes: `meter.snapshot()`. `rows` are the samples of an epoch; `mixed` is the order of a
    mixture, None of one dataset. Raises ParamsError for a value of the wrong type or out of its range, DataError where
    the data hasn't one batch, TypeError for a keyword that it doesn't have.
    """

    def __init__(
        self,
        zone: Zone | Mapping[str, Zone],
        manifest: Manifest | Mapping[str, Manifest],
        *,
        split: str,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
        **parts: Unpack[Parts],
    ) -> None:
        parts = complete(parts)
        check_options(parts, rank=rank, world=world, split=split, batch_size=batch_size, seed=seed, epochs=epochs)
        batching, text, mixing, loading = parts["batching"], parts["text"], parts["mixing"], parts["loading"]
        datasets, weights = chosen(zone, manifest, loading.tiers, split=split, text=text, mixing=mixing)
        ramp, rest = Ramp(batching.batch_ramp or {0: batch_size}, batch_size), batching.last
        order: Batches = order_of(
            datasets, weights, mixing.steps, "drop" if rest == "drop" else "keep", batch=ramp, seed=seed,
            ordering=parts["order"],
        )  # fmt: skip
        fetcher = Fetcher([(dataset.tiers, dataset.table) for dataset in datasets.values()], loading.ahead)
        counts = np.concatenate([dataset.samples for dataset in datasets.values()])
        self.rows, self.mixed, self.meter = order.rows, order if isinstance(order, Mixture) else None, Meter()
        buffers = buffers_from(loading.allocate)
        gatherer = Gatherer(fetcher, counts, same_fields(datasets), buffers, self.meter, loading.memory)
        if batching.bucket_batches > 1 and parts["order"].shuffle and gatherer.varies:
            order = Bucketed(order, batching.bucket_batches, seed, gatherer.lengths)
        self._source = Source(order, gatherer, rank, world, pad=rest == "pad")
        self._digest = digest_of(manifest)
        self.split, self.seq_len, self.domain, self.unit = split, text.seq_len, mixing.domain, text.samples
        self.epochs, self.prefetch = epochs, loading.prefetch
        self._ready: deque[Batch] = deque()
        self._feed: Feed | None = None
        self._locks: dict[int, threading.RLock] = {}  # by process
        self._place = 0, 0  #: epoch and step of the next batch
        self._nothing_left = False  # a state of the end was loaded, and no loop has been told yet

    @property
    def order(self) -> Batches:
        """Which samples come when."""
        return self._source.order

    def stored(self, shard: int) -> StoredObject:
        """What the lake holds of a shard, by its number in the order."""
        return self._source.gatherer.fetcher.stored(shard)

    # -- iteration -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the current epoch, wherever in it the stream is: as many in each one, unless the batch grows. At
        the end those of the first epoch, with which the next loop begins; 0 where that has nothing."""
        return 0 if self._nothing_left else self.steps_of(self._current()[0])

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

    def batch(self, step: int, epoch: int | None = None) -> Batch:
        """Batch `step` of `epoch`, the current one by default; of negative steps, from its end. Leaves the state alone.
        Raises IndexError where the epoch has none such."""
        epoch = self._current()[0] if epoch is None else self._checked(epoch)
        steps = self.steps_of(epoch)
        if not -steps <= step < steps:
            raise IndexError(f"batch {step} of an epoch of {steps}")
        return self._source.batch(epoch, step % steps)

    def __getitem__(self, index: object) -> NoReturn:
        """Refused: a DataLoader that took a stream for a list would know no state, and begin with epoch 0 each time."""
        raise TypeError(
            f"A stream is no list, so it has no [{index!r}]. For torch's DataLoader, write StreamLoader(stream, "
            "num_workers=…) in its place (from pipelines.training.data.stream_loader); stream.batch(i) is batch i "
            "of the epoch."
        )

    def __iter__(self) -> Iterator[Batch]:
        """What is left before `epochs`. See the class for a loop that begins at the end."""
        with self._exclusive():
            if self.is_at_end() and not self._nothing_left:
                self._go(0, 0)
        return iter(self.__next__, None)  # without Python code of its own between a batch and the loop

    @property
    def wait_seconds(self) -> float:
        """How long the consumer has waited for batches."""
        return self.meter.wait

    def __next__(self) -> Batch:
        """The next batch, if need be of the next epoch. Raises StopIteration at the end as often as it is asked."""
        with self._exclusive():
            if not self._ready:
                self._ready.extend(self._next_group())
            batch = self._ready[0]
            self._place = self._after(batch.epoch, batch.step)
            self._ready.popleft()  # last: of a call that a signal cuts off before, nothing is lost
            return batch

    def _next_group(self) -> list[Batch]:
        if self.is_at_end():
            self._restart()
            self._nothing_left = False
            raise StopIteration
        begun = time.perf_counter()
        try:
            if self._feed is None or not self._feed.is_of_this_process():
                self._feed = Feed(self._source, *self._place, self.epochs, self.prefetch)
            group = next(self._feed)
            self.meter.count(batches=len(group), samples=sum(batch.count for batch in group))
            return group
        except StopIteration:  # before the end
            self._restart()
            raise Cancelled(
                "The stream was closed while a batch of it was waited for. The next loop goes on."
            ) from None
        except BaseException:  # whatever it was, the next call goes on from the state
            self._restart()
            raise
        finally:
            self.meter.count(wait=time.perf_counter() - begun)

    def _restart(self) -> None:
        """Forget what was prepared and end the thread."""
        feed, self._feed = self._feed, None  # first: a signal may cut off what follows
        self._ready.clear()
        if feed is not None:
            feed.close()

    def close(self) -> None:
        """End the thread and let go of the shards. The next loop goes on from the state; a thread that waits for a
        batch now gets Cancelled."""
        if (feed := self._feed) is not None:
            feed.interrupt()
        with self._exclusive():
            self._restart()
            self._source.gatherer.close()

    def _exclusive(self) -> threading.RLock:
        """The lock under which one thread at a time moves the stream. A forked process has its own: of the parent's,
        another thread may be the holder."""
        process = os.getpid()
        return self._locks.get(process) or self._locks.setdefault(process, threading.RLock())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": deque(), "_feed": None, "_locks": {}}

    # -- state ---------------------------------------------------------------------------------------------------

    def _after(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch, step + 1) if step + 1 < self.steps_of(epoch) else (epoch + 1, 0)

    def is_at_end(self) -> bool:
        """Whether nothing is left before `epochs`."""
        return self.epochs is not None and self._place[0] >= self.epochs

    def _current(self) -> tuple[int, int]:
        """Epoch and step with which a loop would go on, or begin anew."""
        return (0, 0) if self.is_at_end() else self._place

    def _go(self, epoch: int, step: int) -> None:
        if self._place != (epoch, step):
            self._restart()
            self._place = epoch, step
        self._nothing_left = False

    def _checked(self, epoch: int) -> int:
        check_epoch(whole("epoch", epoch, 0, None if self.epochs is None else self.epochs - 1), self._source.epochs)
        return epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`. Where the stream is there already, what it has prepared is kept. Raises
        ParamsError for an epoch that the stream doesn't have."""
        self._checked(epoch)
        with self._exclusive():
            self._go(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON values: `epoch` and `step` are of the next batch. The same on every rank, and
        valid for any number of ranks."""
        return State(*self._place, self._digest, self._order_settings()).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises FormatError for a state of an unknown version or with a field that cannot be, DataError when it is of
        other data, ParamsError when the order was another one, or of an epoch that the stream doesn't have. Then the
        stream stays where it is.
        """
        saved = State.from_json(state)
        saved.check(self._digest, self._order_settings())
        saved.check_place(self._source.epochs, self.epochs)
        with self._exclusive():
            self._restart()
            self._go(saved.epoch, saved.step)
            self._nothing_left = self.is_at_end()

    def passed(self, epoch: int, step: int) -> None:
        """Go past batch `step` of `epoch`, which was taken by `batch`. Raises ParamsError where another one is next,
        since the stream was moved meanwhile: this one would come twice, or others not at all."""
        with self._exclusive():
            if self._place != (epoch, step):
                raise ParamsError(
                    f"Batch {step} of epoch {epoch} is due in this iteration, but batch {self._place[1]} of epoch "
                    f"{self._place[0]} in the stream: another iteration or thread takes from it too, or it was moved "
                    "meanwhile. Begin a new iteration, and give each that is to run beside others a stream of its own."
                )
            self._go(*self._after(epoch, step))

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step of the next batch; at the end (`epochs`, 0)."""
        return self._place

    def _order_settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data."""
        unit: dict[str, str] = {} if self.unit == "sequences" else {"stream.samples": self.unit}
        unit |= {} if self.domain is None else {"domain": self.domain}
        return {**self.order.settings(), "split": self.split, "stream.seq_len": self.seq_len, **unit}
