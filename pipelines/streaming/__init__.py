"""The data side of training: shards → batches, in an order that is a pure function. NumPy only."""

from pipelines.streaming.order import Order
from pipelines.streaming.stream import Batch, Stream

__all__ = ["Batch", "Order", "Stream"]
