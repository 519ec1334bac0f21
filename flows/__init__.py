"""When and where: Prefect flows over the same stages that `dvc repro` runs. Prefect is imported nowhere else.

    ingest, curate, shard     plan → map `work` as tasks → commit
    train, evaluate, release  a stage's command in a process of its own, so that no training rank imports Prefect
    version                   `dvc commit` and `dvc push`
    pipeline                  all of it: asks DVC what is stale, runs just that, records each outcome

Every flow runs by hand (`python -m flows.pipeline --recipe digits`) and as a deployment of prefect.yaml.
"""

import os

# Prefect reads these when it is imported: no telemetry, and time for its temporary server to start on a busy machine.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
