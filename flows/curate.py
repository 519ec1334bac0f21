"""raw → curated: type, validate, deduplicate and split. By hand: `python -m flows.curate --recipe digits`."""

from typing import Any

from prefect import flow

from flows.tasks.batches import run_data_stage
from flows.tasks.parameters import RECIPE, Recipe
from flows.tasks.steps import by_hand


@flow(name="curate", flow_run_name="curate {recipe}", persist_result=False)
def curate(recipe: Recipe = RECIPE) -> dict[str, Any]:
    """raw → curated: type, validate, deduplicate and split. Returns the zone's new version and counts."""
    return run_data_stage("curate", recipe)


if __name__ == "__main__":
    by_hand(curate)
