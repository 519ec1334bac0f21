"""Parallelism on one device mesh: pipeline × data × shard × tensor, the outermost first.

What the rest of training may rely on, in every layout:

- `Session.group` says where this rank stands (`Group`): `layout.data_rank` of `data_world` are its place in the global
  batch, which ranks of one tensor or pipeline group share; `owns_loss` says whether its losses count in a sum over
  ranks.
- `Session.group.mesh` is torch's `DeviceMesh` with the dimensions `pipeline`, `data`, `shard`, `tensor` (those of
  size 1 too), or None for a single rank. `mesh["shard"].get_group()` is a process group.
- `Session.learner.model` is the module that holds this rank's parameters; `runner` beside it runs it, forward and back.
  The names in `model.named_parameters()` and `model.state_dict()` are those of the plain model: no prefix of a wrapper,
  ever.
  - data (DDP), pipeline: plain tensors. shard, tensor: DTensors on sub-meshes of the mesh, every one of a module's.
  - pipeline: a stage holds a part of the plain model's modules, under their own names; a parameter that two stages
    share (tied embeddings: first and last stage) has the same name and value on both.
- What gathers (`DTensor.full_tensor`, `Session.final_weights`) is collective: all ranks call it.
"""

from pipelines.training.parallelism.gradients import clip_, share_buffers
from pipelines.training.parallelism.group import Group
from pipelines.training.parallelism.layout import DIMENSIONS, Layout
from pipelines.training.parallelism.parallelize import Parallelized, make_mesh, parallelize
from pipelines.training.parallelism.runner import Runner, SharedScaler

__all__ = [
    "DIMENSIONS",
    "Group",
    "Layout",
    "Parallelized",
    "Runner",
    "SharedScaler",
    "clip_",
    "make_mesh",
    "parallelize",
    "share_buffers",
]
