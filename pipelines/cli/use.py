"""The whole job, and the models that came of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import USE, Named, Recipe, RecipeOption, app, one_of

Alias = Annotated[str, typer.Option(help="champion, candidate, or a version number.")]


@app.command("repro", rich_help_panel=USE)
def repro_command(
    recipe: Named = None,
    option: Recipe = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, stale or not.")] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
) -> None:
    """Run what is stale of a recipe: new source files, changed parameters, missing outs. Resumes what was cut off."""
    from pipelines.reproduce.repro import repro

    sys.exit(repro(one_of(recipe, option), force=force, until=until))


@app.command("generate", rich_help_panel=USE)
def generate_command(
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens (bytes) to write.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the likeliest K tokens only.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    alias: Alias = "champion",
    recipe: Named = None,
    option: Recipe = None,
) -> None:
    """Write text with a registered language model."""
    from pipelines.serving import generate

    chosen = one_of(recipe, option)
    generate(chosen, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, alias=alias)


@app.command("predict", rich_help_panel=USE)
def predict_command(
    files: Annotated[list[Path], typer.Argument(help="Images, or CSV files with the features' columns.")],
    alias: Alias = "champion",
    recipe: RecipeOption = None,
) -> None:
    """Classify files with a registered model: one line a file (or a row), label and probability."""
    from pipelines.serving import predict

    predict(recipe, files, alias=alias)
