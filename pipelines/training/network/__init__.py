"""What the copies of a model send each other (train.network), and the count of it."""

from pipelines.training.network.exchange import Exchange
from pipelines.training.network.sampling import Sampler
from pipelines.training.network.wire import Wire

__all__ = ["Exchange", "Sampler", "Wire"]
