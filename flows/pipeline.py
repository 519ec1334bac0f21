"""The whole job: asks DVC what is stale, runs just that, in order, and records each outcome with `dvc commit`.

By hand, with Prefect's temporary server (or the one of PREFECT_API_URL):

    python -m flows.pipeline                      # the default recipe
    python -m flows.pipeline --recipe digits --no-push
    python -m flows.pipeline --help

As a deployment: see prefect.yaml. It leaves the same dvc.lock as `shardline repro`, so the two may take turns.
"""

import time
from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.logging import get_run_logger

from flows.curate import curate
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.release import release
from flows.shard import shard
from flows.tasks.commands import run_by_dvc
from flows.tasks.parameters import RECIPE, Force, Push, Recipe, ReleaseStage, Retries
from flows.tasks.report import Outcome, publish_summary
from flows.tasks.steps import DVC, RETRY, STEP, by_hand, open_recipe
from flows.train import train
from flows.version import version
from flows.warm import warm
from pipelines.caching.tiers import is_cached, keep_embedded
from pipelines.reproduce import status
from pipelines.reproduce.repro import summary
from pipelines.reproduce.writer import exclusive
from pipelines.workspace import Workspace

UP_TO_DATE = "up to date"


@flow(name="pipeline", flow_run_name="{recipe}", persist_result=False)
def pipeline(recipe: Recipe = RECIPE, force: Force = False, push: Push = True, retries: Retries = 2) -> dict[str, str]:
    """Run the stages of a recipe that are stale, from its sources to the registry: new source files, changed
    parameters, missing outputs. Leaves a summary on the Artifacts page. Returns what became of each stage.
    """
    ws = open_recipe(recipe)
    outcomes: dict[str, Outcome] = {}
    pushed = "not yet"
    with exclusive(ws), keep_embedded(ws):
        try:
            run_stale(ws, recipe, outcomes, force=force, retries=retries)
            pushed = version(recipe, push=push)
        finally:
            publish_summary(ws, outcomes, pushed)
    get_run_logger().info("\n%s", summary(ws))
    return {stage: outcome.did for stage, outcome in outcomes.items()}


def run_stale(ws: Workspace, recipe: str, outcomes: dict[str, Outcome], *, force: bool, retries: int) -> None:
    """Run each stage whose turn has come and that is stale by then; note what became of it in `outcomes`."""
    stale = find_stale(recipe)
    for reason in find_new_sources(recipe) if "ingest" not in stale else []:
        stale["ingest"] = [reason]
    stages = status.stages(ws)
    for stage, command in stages.items():
        if stage not in stale and not force:
            outcomes[stage] = Outcome(UP_TO_DATE)
            continue
        outcomes[stage] = Outcome("failed", "; ".join(stale.get(stage, ["forced"])))
        get_run_logger().info("%s: %s", stage, outcomes[stage].why)
        start = time.monotonic()
        if stage == "train" and ws.zone("shards").root is None and is_cached(ws):
            warm(recipe)
        run_one(recipe, stage, command, retries)
        outcomes[stage].did, outcomes[stage].seconds = "ran", time.monotonic() - start
        if stage != list(stages)[-1]:
            stale = find_stale(recipe)


def run_one(recipe: str, stage: str, command: str, retries: int) -> None:
    """Run a stage by its flow; one with a command of its own by DVC."""
    steps: dict[str, Callable[[], Any]] = {
        "ingest": lambda: ingest(recipe),
        "curate": lambda: curate(recipe),
        "shard": lambda: shard(recipe),
        "train": lambda: train(recipe, retries),
        "evaluate": lambda: evaluate(recipe),
        "package": lambda: release(recipe, [ReleaseStage.package]),
        "promote": lambda: release(recipe, [ReleaseStage.promote]),
    }
    if command == f"shardline {stage}" and stage in steps:
        steps[stage]()
    else:
        run_by_dvc(recipe, stage)


@task(name="ask DVC", tags={DVC}, **STEP, **RETRY)
def find_stale(recipe: str) -> dict[str, list[str]]:
    """Stage → what changed since it was recorded."""
    return status.stale(open_recipe(recipe))


@task(name="ask sources", **STEP, **RETRY)
def find_new_sources(recipe: str) -> list[str]:
    """What changed in the sources since they were ingested."""
    return status.stale_sources(open_recipe(recipe))


if __name__ == "__main__":
    by_hand(pipeline)
