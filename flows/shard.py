"""curated → shards: shuffled samples in mapped Arrow files. By hand: `python -m flows.shard --recipe digits`."""

from typing import Any

from prefect import flow

from flows.tasks.batches import run_data_stage
from flows.tasks.parameters import RECIPE, Recipe
from flows.tasks.steps import by_hand


@flow(name="shard", flow_run_name="shard {recipe}", persist_result=False)
def shard(recipe: Recipe = RECIPE) -> dict[str, Any]:
    """curated → shards: shuffled samples in mapped Arrow files. Returns the zone's new version and counts."""
    return run_data_stage("shard", recipe)


if __name__ == "__main__":
    by_hand(shard)
