"""MLflow: runs that record what was done, and that never stop the work when MLflow is away.

run = open_run(ws)             # a new run; every method is a no-op when MLflow cannot be reached
run.log_metrics({"loss": 1.0}, step=1)
run.close()
"""

from pipelines.tracking.lineage import lineage_tags
from pipelines.tracking.recorded import recorded_run_id
from pipelines.tracking.run import Run, open_run
from pipelines.tracking.store import Store, connect

__all__ = ["Run", "Store", "connect", "lineage_tags", "open_run", "recorded_run_id"]
