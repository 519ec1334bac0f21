"""Record with DVC what stages left, and upload it. By hand: `python -m flows.version --recipe digits --push`."""

from prefect import flow, task
from prefect.logging import get_run_logger

from flows.tasks.parameters import RECIPE, Push, Recipe, Stages
from flows.tasks.steps import DVC, RETRY, STEP, by_hand, open_recipe, record
from pipelines.reproduce import status
from pipelines.reproduce.writer import exclusive


@flow(name="version", flow_run_name="version {recipe}", persist_result=False)
def version(recipe: Recipe = RECIPE, stages: Stages = [], push: Push = True) -> str:  # noqa: B006
    """Record the named stages with `dvc commit`, and upload the recipe's outputs with `dvc push` if DVC has a default
    remote. Returns what was pushed, in DVC's words."""
    ws = open_recipe(recipe)
    with exclusive(ws):
        for stage in stages:
            record(recipe, stage)
        return push_outs(recipe) if push else "not pushed"


@task(name="push", tags={DVC}, **STEP, **RETRY)
def push_outs(recipe: str) -> str:
    """Upload what the default remote lacks."""
    ws = open_recipe(recipe)
    remote = status.remote(ws)
    pushed = f"{status.push(ws)} to {remote}" if remote else "not pushed: DVC has no default remote"
    get_run_logger().info(pushed)
    return pushed


if __name__ == "__main__":
    by_hand(version)
