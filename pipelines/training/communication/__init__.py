"""What the copies of a model send each other (train.network), and the count of it."""

from pipelines.training.communication.gradient_sync import Exchange
from pipelines.training.communication.sampling import Sampler
from pipelines.training.communication.traffic import Wire

__all__ = ["Exchange", "Sampler", "Wire"]
