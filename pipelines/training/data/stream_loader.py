"""A stream as torch's DataLoader, for libraries that want one, and for work in their own `collate_fn` processes."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as MapDataset

from pipelines.streaming import Batch, Stream
from storage.errors import ParamsError

_OURS = ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order")

Place = tuple[int, int]  # epoch, step


class StreamLoader(DataLoader[Batch]):
    """What is left of the stream's epoch, batch by batch as tensors; the next iteration is the next epoch. Of a stream
    that has come to its end (`epochs`), it is the first epoch again.

    `options` are DataLoader's: `num_workers`, `collate_fn` (of one whole batch), `pin_memory`, … The batches, their
    order and which process makes them are ours. Workers make batches by their place, however they are started, and
    persistent ones as well: the stream is moved here alone, past each batch that was handed out. So `state_dict` is
    exact at any time, and nothing comes twice.
    """

    def __init__(self, stream: Stream, **options: Any) -> None:
        """Raises ParamsError for an option that the stream decides."""
        if taken := [name for name in _OURS if name in options]:
            raise ParamsError(
                f"StreamLoader: {', '.join(taken)} cannot be given, since the stream makes whole batches in its own "
                "order. Set batch_size, order=Ordering(shuffle=…) and batching=Batching(last=…) of the Stream."
            )
        self.stream = stream
        super().__init__(_ByPlace(stream), batch_size=None, sampler=_Rest(stream), **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        iter(self.stream)  # begins anew at the end
        if self.stream.is_at_end():
            next(self.stream, None)  # the end of a loaded state is told once
            return
        epoch, step = self.stream.position
        for batch in super().__iter__():
            self.stream.passed(epoch, step)
            step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The stream's."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken. Raises as `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`. Raises as `Stream.set_epoch`."""
        self.stream.set_epoch(epoch)


class _ByPlace(MapDataset[Batch]):
    """The batches of a stream by their place, which needs no state: a worker has a copy of the stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, place: Place) -> Batch:
        epoch, step = place
        return self.stream.batch(step, epoch)


class _Rest(Sampler[Place]):
    """The places of what is left of the stream's epoch, as of when the iteration begins."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Place]:
        epoch, first = self.stream.position
        return iter([(epoch, step) for step in range(first, self.stream.steps_of(epoch))])

    def __len__(self) -> int:
        """Batches of the whole epoch."""
        return len(self.stream)
