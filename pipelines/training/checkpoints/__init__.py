"""Checkpoints by torch.distributed.checkpoint: sharded, written in the background, verified, never unpickled.

| module | does |
| --- | --- |
| `key` | which training a checkpoint belongs to |
| `state`, `chunks` | a model's and an optimiser's state by name, and what of each tensor this rank holds |
| `rows` | what each copy of the model has for itself |
| `saver` | staging, the background thread, restoring |
| `planning`, `storage` | torch's interfaces: planners for chunks and JSON, reading and writing a lake's zone |
| `tensor_files` | chunks in safetensors files |
| `manifest`, `coverage` | what a checkpoint says of itself, and whether its chunks fill their tensors |
| `retention` | which checkpoints are there and which stay |
| `gather` | whole tensors on rank 0 |
"""

from pipelines.training.checkpoints.key import NEUTRAL, checkpoint_key
from pipelines.training.checkpoints.saver import Extra, Saver

__all__ = ["NEUTRAL", "Extra", "Saver", "checkpoint_key"]
