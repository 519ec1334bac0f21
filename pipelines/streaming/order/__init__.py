"""Which samples come when: a pure function (seed, epoch, step) → (shard, row). It knows no bytes, and no files.

halves → permutation, windows → layout → lanes  ┐
                       ramp → epochs → batches  ├→ order, mixture → buckets
                              weights → quotas  ┘
"""

from pipelines.streaming.order.batch_ramp import Ramp
from pipelines.streaming.order.batches import Batches
from pipelines.streaming.order.buckets import Bucketed
from pipelines.streaming.order.epochs import Rest
from pipelines.streaming.order.lanes import Ordering
from pipelines.streaming.order.layout import ORDER_VERSION
from pipelines.streaming.order.mixing.mixture import Mixture
from pipelines.streaming.order.mixing.weights import Weight
from pipelines.streaming.order.order import Order

__all__ = ["ORDER_VERSION", "Batches", "Bucketed", "Mixture", "Order", "Ordering", "Ramp", "Rest", "Weight"]
