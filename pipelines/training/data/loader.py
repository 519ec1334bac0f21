"""A stream as trainers expect a loader: an epoch at a time, tensors on the device."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.models import Task
from pipelines.streaming import Batch, Stream
from pipelines.training.data.targets import global_targets
from pipelines.training.parallelism import Group
from pipelines.training.process.device import arrived

#: What a batch is: inputs [n, …] and targets as `Task.pair` gives them, and the two figures below.
Tensors = dict[str, Any]


class Loader:
    """What is left of the stream's epoch, batch by batch: {"inputs", "targets", "weight", "count"}.

    With `stream.document_mask`, also what the model is given beside the inputs: {"documents", "positions"}, [n, T] each
    (`pipelines.models.document_mask`).

    count: targets of the *global* batch that count, without those that are IGNORED (all ranks iterate together then,
    since they add them up). weight: parts / count, so that `weight · (sum of losses over the targets)`, averaged over
    the parts of the batch (`layout.data_world`: the ranks, where none shares its samples with others), as DDP and FSDP
    do, is the mean over the global batch, for any number of ranks. A rank without samples in a short last batch gets
    one sample of zeros with weight 0, since every rank must take part.

    Iterating starts nothing by itself, and goes on from the state; the last batch of an epoch ends the iteration, and
    the next one is of the next epoch. The state counts the batches that were handed out: hand the loader to a
    framework as it is, since one that wraps it to fetch ahead would be ahead of itself in its checkpoints. Where the
    stream ends (`val`), each iteration is one whole pass, but for the first one after a state was loaded.
    """

    def __init__(self, stream: Stream, task: Task, group: Group) -> None:
        """`group` has `hosts` where the targets that count vary."""
        self.stream, self._task, self._group = stream, task, group
        self._resumed = False

    def __len__(self) -> int:
        """Batches of the current epoch: the same on every rank, and in every epoch unless the batch grows."""
        return len(self.stream)

    def __iter__(self) -> Iterator[Tensors]:
        if self.stream.epochs is not None and not self._resumed:
            self.stream.set_epoch(0)
        self._resumed = False
        for batch in self.stream:
            tensors = self._tensors(batch)
            copied = arrived(self._group.device)
            try:
                yield tensors
            finally:
                copied()  # the stream writes into the batch's memory again once it is let go
            if batch.step + 1 == self.stream.steps_of(batch.epoch):
                return

    def state_dict(self) -> dict[str, Any]:
        """The stream's: JSON values, the same on every rank, valid for any number of ranks."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken, in milliseconds: nothing is read again. Raises as `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)
        self._resumed = True

    def _tensors(self, batch: Batch) -> Tensors:
        inputs, targets = self._task.pair(batch.arrays, self._group.device)
        beside = self._task.beside(batch.arrays, self._group.device)
        count = global_targets(batch, self._task, self._group)
        weight = self._group.layout.data_world / count
        tensors = {"inputs": inputs, "targets": targets, **beside}
        if not len(inputs):
            tensors = {name: values.new_zeros(1, *values.shape[1:]) for name, values in tensors.items()}
            weight = 0.0
        return {**tensors, "weight": weight, "count": count}
