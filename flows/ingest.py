"""sources → raw: fetch what is new or changed, file by file. By hand: `python -m flows.ingest --recipe digits`."""

from typing import Any

from prefect import flow

from flows.tasks.batches import run_data_stage
from flows.tasks.parameters import RECIPE, Recipe
from flows.tasks.steps import by_hand


@flow(name="ingest", flow_run_name="ingest {recipe}", persist_result=False)
def ingest(recipe: Recipe = RECIPE) -> dict[str, Any]:
    """sources → raw: fetch what is new or changed, file by file. Returns the zone's new version and counts."""
    return run_data_stage("ingest", recipe)


if __name__ == "__main__":
    by_hand(ingest)
