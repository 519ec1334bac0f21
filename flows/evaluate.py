"""model → metrics, beside their baselines. By hand: `python -m flows.evaluate --recipe digits`."""

from typing import Any

from prefect import flow

from flows.tasks.commands import run_stage
from flows.tasks.parameters import RECIPE, Recipe
from flows.tasks.report import read_json
from flows.tasks.steps import by_hand, open_recipe
from pipelines.reproduce.writer import exclusive


@flow(name="evaluate", flow_run_name="evaluate {recipe}", persist_result=False)
def evaluate(recipe: Recipe = RECIPE) -> dict[str, Any]:
    """Measure the model, and simple baselines beside it, on held-out samples. Returns metrics/evaluate.json."""
    ws = open_recipe(recipe)
    with exclusive(ws):
        run_stage(recipe, "evaluate")
        return read_json(ws.metrics("evaluate"))


if __name__ == "__main__":
    by_hand(evaluate)
