"""Fill the caches before training. By hand: `python -m flows.warm --recipe digits --tier node`."""

import shlex

from prefect import flow, task
from prefect.logging import get_run_logger

from flows.tasks.commands import explain, supervised
from flows.tasks.parameters import RECIPE, Recipe, Tier
from flows.tasks.steps import RETRY, STEP, by_hand, open_recipe
from pipelines.caching.tiers import keep_embedded


@flow(name="warm", flow_run_name="warm {recipe}", persist_result=False)
def warm(recipe: Recipe = RECIPE, tier: Tier = "both") -> str:
    """Fetch the shards of the train split into the caches, in the order in which training reads them. Returns the
    command's last line."""
    with keep_embedded(open_recipe(recipe)):
        return fill(recipe, tier)


@task(name="fill", task_run_name="fill {tier}", **STEP, **RETRY)
def fill(recipe: str, tier: str) -> str:
    """`shardline cache warm`, in a process of its own."""
    ws = open_recipe(recipe)
    command = ["shardline", "cache", "warm", "--tier", tier]
    code, tail = supervised(command, ws.root, get_run_logger().info)
    explain(shlex.join(command), ws, code, tail)
    return tail[-1] if tail else ""


if __name__ == "__main__":
    by_hand(warm)
