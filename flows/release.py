"""model → registry: package, then promote. By hand: `python -m flows.release --recipe digits`."""

from typing import Any, Literal

from prefect import flow

from flows.commands import run_stage
from flows.report import read_json
from flows.steps import RECIPE, Recipe, by_hand, open_recipe
from pipelines.writer import exclusive

ReleaseStage = Literal["package", "promote"]


@flow(name="release", flow_run_name="release {recipe}", persist_result=False)
def release(recipe: Recipe = RECIPE, stages: list[ReleaseStage] = ["package", "promote"]) -> dict[str, Any]:  # noqa: B006
    """Package the model, register it as candidate, and make it champion if the gate passes. Returns
    data/promotion.json."""
    ws = open_recipe(recipe)
    with exclusive(ws):
        for stage in stages:
            run_stage(recipe, stage)
        return read_json(ws.promotion)


if __name__ == "__main__":
    by_hand(release)
