"""The data side of training: shards → batches, in an order that is a pure function. NumPy only."""

from pipelines.streaming.gather.ragged import Ragged
from pipelines.streaming.meter import Meter, Times
from pipelines.streaming.options import Batching, Loading, Mixing, Text
from pipelines.streaming.order import Order, Ordering
from pipelines.streaming.source import Batch
from pipelines.streaming.stream import Stream

__all__ = [
    "Batch", "Batching", "Loading", "Meter", "Mixing", "Order", "Ordering", "Ragged", "Stream", "Text", "Times",
]  # fmt: skip
