"""shards → model: starts the ranks, and resumes them when they are stopped. By hand: `python -m flows.train`.

Prefect is imported here only: `shardline train` and its ranks are processes of their own.
"""

from prefect import flow

from flows.tasks.commands import run_stage
from flows.tasks.parameters import RECIPE, Recipe, Retries, RetryDelay
from flows.tasks.report import link_run
from flows.tasks.steps import by_hand, open_recipe
from pipelines.reproduce.writer import exclusive


@flow(name="train", flow_run_name="train {recipe}", persist_result=False)
def train(recipe: Recipe = RECIPE, retries: Retries = 2, retry_delay: RetryDelay = 10.0) -> str | None:
    """Train the model of params.yaml on the shards, on `train.ranks` ranks. Returns the MLflow run's id.

    A training that fails, or that a signal from outside stops (a machine that is taken away), resumes from its last
    checkpoint up to `retries` times. A cancelled one saves a checkpoint and leaves no process behind.
    """
    ws = open_recipe(recipe)
    with exclusive(ws):
        run_stage(recipe, "train", retries=retries, delay=retry_delay)
        return link_run(ws)


if __name__ == "__main__":
    by_hand(train)
