"""The whole job, and the models that came of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, RecipeOption, app, one_of

Alias = Annotated[str, typer.Option(help="champion, candidate, or a version number.")]
ChangedCode = Annotated[
    bool,
    typer.Option(
        "--changed-code", help="Run the version through today's code of its model, though it was trained with other."
    ),
]


@app.command(rich_help_panel=USE)
def repro(
    recipe: Named = None,
    option: Recipe = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, stale or not.")] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
) -> None:
    """Run what is stale of a recipe: new source files, changed parameters, missing outs. Resumes what was cut off."""
    from pipelines.reproduce.repro import repro as run

    sys.exit(run(one_of(recipe, option), force=force, until=until))


@app.command(rich_help_panel=USE)
def generate(
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens (bytes) to write.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the likeliest K tokens only.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    alias: Alias = "champion",
    changed_code: ChangedCode = False,
    recipe: Named = None,
    option: Recipe = None,
) -> None:
    """Write text with a registered language model."""
    from pipelines.serving import generate as run

    chosen = one_of(recipe, option)
    run(
        chosen, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, alias=alias,
        changed_code=changed_code,
    )  # fmt: skip


@app.command(rich_help_panel=USE)
def predict(
    files: Annotated[list[Path], typer.Argument(help="Images, or CSV files with the features' columns.")],
    alias: Alias = "champion",
    changed_code: ChangedCode = False,
    as_json: AsJson = False,
    recipe: RecipeOption = None,
) -> None:
    """Classify files with a registered model: one line a file (or a row), label and probability."""
    from pipelines.serving import predict as run

    run(recipe, files, alias=alias, changed_code=changed_code, as_json=as_json)
