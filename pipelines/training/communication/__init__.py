"""What the copies of a model send each other (train.communication), and the count of it."""

from pipelines.training.communication.gradient_sync import GradientSync
from pipelines.training.communication.sampling import Sampler
from pipelines.training.communication.traffic import Traffic

__all__ = ["GradientSync", "Sampler", "Traffic"]
