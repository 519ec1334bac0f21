"""`shardline compare`: the same recipe trained in several ways, side by side, beside its outs.

| module | does |
| --- | --- |
| `optimizers`, `contenders` | every optimiser, and the learning rate that it gets |
| `communication`, `ways` | every way in which copies of a model can talk |
| `schedules` | a picture of every schedule; trains nothing |
| `contest` | what comparisons share: entries that outlive an interruption, MLflow's runs |
| `trial` | one training of a comparison |
| `report` | table and plot |
"""

from pipelines.experiments.comparison.communication import compare_communication
from pipelines.experiments.comparison.optimizers import compare_optimizers
from pipelines.experiments.comparison.schedules import compare_schedules

__all__ = ["compare_communication", "compare_optimizers", "compare_schedules"]
