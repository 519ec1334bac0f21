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
    from pipelines.reproduce.parents import tell_of_other_parents

    with _at_work(name, recipe, option) as ws:
        if name == "shard":
            tell_of_other_parents(ws, "curated")
        say(str(run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)))


@app.command(rich_help_panel=STAGES)
def ingest(recipe: Named = None, option: Recipe = None) -> None:
    """Copy the source files that are new or changed into the raw zone, byte for byte."""
    _data_stage("ingest", recipe, option)


@app.command(rich_help_panel=STAGES)
def curate(recipe: Named = None, option: Recipe = None) -> None:
    """Type, validate, deduplicate and split the raw files. Sets unusable files and rows aside, with reasons."""
    _data_stage("curate", recipe, option)


@app.command(rich_help_panel=STAGES)
def shard(recipe: Named = None, option: Recipe = None) -> None:
    """Write the curated samples, shuffled, as Arrow shards, which training maps into memory."""
    _data_stage("shard", recipe, option)


@app.command("train", rich_help_panel=STAGES)
def train_command(recipe: Named = None, option: Recipe = None) -> None:
    """Train the model of params.yaml on the shards; an interrupted training resumes from its last checkpoint."""
    from pipelines.reproduce.parents import tell_of_other_parents
    from pipelines.reproduce.preflight import check_shards
    from pipelines.training import train

    with _at_work("train", recipe, option, together=True) as ws:
        check_shards(ws)
        tell_of_other_parents(ws, "shards")
        train(ws)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(recipe: Named = None, option: Recipe = None) -> None:
    """Measure the model, and simple baselines beside it, on held-out samples."""
    from pipelines.evaluation import evaluate

    with _at_work("evaluate", recipe, option) as ws:
        evaluate(ws)


@app.command("package", rich_help_panel=STAGES)
def package_command(recipe: Named = None, option: Recipe = None) -> None:
    """Write the model as an MLflow model that can be served, with signature, input example and model card."""
    from pipelines.release import package

    with _at_work("package", recipe, option) as ws:
        package(ws)


@app.command("promote", rich_help_panel=STAGES)
def promote_command(recipe: Named = None, option: Recipe = None) -> None:
    """Register the model with the alias candidate; give it the alias champion if it passes the gate."""
    from pipelines.release import promote

    with _at_work("promote", recipe, option) as ws:
        promote(ws)
