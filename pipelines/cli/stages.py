"""The stages, one by one: what DVC calls."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.cli.app import STAGES, Named, Recipe, app, workspace


@contextmanager
def _at_work(name: str, recipe: str | None, option: str | None, *, together: bool = False) -> Iterator[Any]:
    """The workspace of a stage that is at work in it: alone, or `together` with other processes of a training."""
    from pipelines.reproduce.writer import stage_at_work

    ws = workspace(recipe, option)
    with stage_at_work(ws, name, shared=together and _one_of_several(ws)):
        yield ws


def _one_of_several(ws: Any) -> bool:
    from pipelines.training.launchers.placement import started_by_others

    return ws.params.compute.nodes > 1 or "PET_NNODES" in os.environ or started_by_others()


def _data_stage(name: str, recipe: str | None, option: str | None) -> None:
    from pipelines.console.progress import say
    from pipelines.ingest import data_stage
    from pipelines.ingest.stage import journal_of, run

    with _at_work(name, recipe, option) as ws:
        say(str(run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)))


@app.command(rich_help_panel=STAGES)
def ingest(recipe: Named = None, option: Recipe = None) -> None:
    """Fetch sources into the raw zone, byte for byte; only files that are new or changed."""
    _data_stage("ingest", recipe, option)


@app.command(rich_help_panel=STAGES)
def curate(recipe: Named = None, option: Recipe = None) -> None:
    """Type, validate, deduplicate and split the raw files; set aside, with a reason, what can't be used."""
    _data_stage("curate", recipe, option)


@app.command(rich_help_panel=STAGES)
def shard(recipe: Named = None, option: Recipe = None) -> None:
    """Write the curated samples, shuffled, as Arrow shards that training maps."""
    _data_stage("shard", recipe, option)


@app.command("train", rich_help_panel=STAGES)
def train_command(recipe: Named = None, option: Recipe = None) -> None:
    """Train the model of params.yaml on the shards; goes on from the last checkpoint when it was cut off."""
    from pipelines.reproduce.preflight import check_shards
    from pipelines.training import train

    with _at_work("train", recipe, option, together=True) as ws:
        check_shards(ws)
        train(ws)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(recipe: Named = None, option: Recipe = None) -> None:
    """Measure the model on held-out samples beside its baselines."""
    from pipelines.evaluation import evaluate

    with _at_work("evaluate", recipe, option) as ws:
        evaluate(ws)


@app.command("package", rich_help_panel=STAGES)
def package_command(recipe: Named = None, option: Recipe = None) -> None:
    """Write the model with signature, input example and model card, as MLflow serves it."""
    from pipelines.release import package

    with _at_work("package", recipe, option) as ws:
        package(ws)


@app.command("promote", rich_help_panel=STAGES)
def promote_command(recipe: Named = None, option: Recipe = None) -> None:
    """Register the model as candidate; make it champion if the gate passes."""
    from pipelines.release import promote

    with _at_work("promote", recipe, option) as ws:
        promote(ws)
