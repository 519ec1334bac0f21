"""Training: shards → model, on one or more ranks, resumable at any step. Importing this does not import torch."""

from pipelines.training.stage import train

__all__ = ["train"]
