"""model → registry: package, then promote. By hand: `python -m flows.release --recipe digits`."""

from typing import Any

from prefect import flow

from flows.tasks.commands import run_stage
from flows.tasks.parameters import RECIPE, Recipe, ReleaseStage, ReleaseStages
from flows.tasks.report import read_json
from flows.tasks.steps import by_hand, open_recipe
from pipelines.reproduce.writer import exclusive


@flow(name="release", flow_run_name="release {recipe}", persist_result=False)
def release(recipe: Recipe = RECIPE, stages: ReleaseStages = list(ReleaseStage)) -> dict[str, Any]:  # noqa: B006
    """Package the model, register it as candidate, and make it champion if the gate passes. Returns
    data/promotion.json."""
    ws = open_recipe(recipe)
    with exclusive(ws):
        for stage in stages:
            run_stage(recipe, stage)
        return read_json(ws.promotion)


if __name__ == "__main__":
    by_hand(release)
