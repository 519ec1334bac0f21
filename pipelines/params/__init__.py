"""All parameters of a recipe: names, types, ranges, defaults and what they do.

`params.yaml` holds them; DVC tracks them by section, and each stage of `dvc.yaml` lists the sections that it reads.
A name that is not here is refused with the nearest one that is. No module here imports anything heavy.
"""

from pipelines.params.batch_ramp import check_ramp
from pipelines.params.data import Curate, Ingest, Lake, Shard, Split, Stream
from pipelines.params.describe import describe
from pipelines.params.domains import check_names
from pipelines.params.load import FILENAME, load_params
from pipelines.params.recipe import Params
from pipelines.params.release import Evaluate, Gate, Metric, Package, Promote
from pipelines.params.running import Cache, Compute, HotCache, NodeCache
from pipelines.params.schema.names import suggestion
from pipelines.params.schema.section import NAME, Section
from pipelines.params.train.checkpoints import Checkpoints
from pipelines.params.train.communication import Communication
from pipelines.params.train.launching import Launching
from pipelines.params.train.parallel import Parallel
from pipelines.params.train.training import Model, Train

__all__ = [
    "FILENAME",
    "NAME",
    "Cache",
    "Checkpoints",
    "Communication",
    "Compute",
    "Curate",
    "Evaluate",
    "Gate",
    "HotCache",
    "Ingest",
    "Lake",
    "Launching",
    "Metric",
    "Model",
    "NodeCache",
    "Package",
    "Parallel",
    "Params",
    "Promote",
    "Section",
    "Shard",
    "Split",
    "Stream",
    "Train",
    "check_names",
    "check_ramp",
    "describe",
    "load_params",
    "suggestion",
]
