"""The data side of training: shards → batches, in an order that is a pure function. NumPy only."""

from pipelines.streaming.gather.ragged import Ragged
from pipelines.streaming.meter import Meter, Times
from pipelines.streaming.order import Order
from pipelines.streaming.source import Batch
from pipelines.streaming.stream import Stream

__all__ = ["Batch", "Meter", "Order", "Ragged", "Stream", "Times"]
