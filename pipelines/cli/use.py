"""The whole job, and the models that came of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, RecipeOption, app, one_of

Alias = Annotated[str, typer.Option(help="Registered model to use: champion, candidate, or a version number.")]
ChangedCode = Annotated[
    bool,
    typer.Option(
        "--changed-code", help="Use today's code of the model, although the version was trained with other code."
    ),
]


@app.command("repro", rich_help_panel=USE)
def repro_command(
    recipe: Named = None,
    option: Recipe = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, also those that are up to date.")] = False,
    until: Annotated[
        str | None, typer.Option(help="Last stage to run, e.g. train; by default the last one of dvc.yaml.")
    ] = None,
) -> None:
    """Run the stale stages of a recipe (new sources, changed parameters, missing outputs); resume interrupted ones."""
    from pipelines.reproduce.repro import repro

    sys.exit(repro(one_of(recipe, option), force=force, until=until))


@app.command("generate", rich_help_panel=USE)
def generate_command(
    prompt: Annotated[str, typer.Option(help="Text that the model continues.")],
    tokens: Annotated[
        int, typer.Option(min=1, max=100_000, help="Tokens to write (bytes, with the default tokens).")
    ] = 300,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, max=5.0, help="Temperature of sampling: lower is less random; 0 always takes the likeliest token."
        ),
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from this number of likeliest tokens only.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of sampling: the same seed writes the same text.")] = 0,
    alias: Alias = "champion",
    changed_code: ChangedCode = False,
    recipe: Named = None,
    option: Recipe = None,
) -> None:
    """Write text with a registered language model."""
    from pipelines.serving import generate

    chosen = one_of(recipe, option)
    generate(
        chosen, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, alias=alias,
        changed_code=changed_code,
    )  # fmt: skip


@app.command("predict", rich_help_panel=USE)
def predict_command(
    files: Annotated[list[Path], typer.Argument(help="Image files, or CSV files with the feature columns.")],
    alias: Alias = "champion",
    changed_code: ChangedCode = False,
    as_json: AsJson = False,
    recipe: RecipeOption = None,
) -> None:
    """Predict with a registered model. Prints a line per image or CSV row: label and probability, or the value."""
    from pipelines.serving import predict

    predict(recipe, files, alias=alias, changed_code=changed_code, as_json=as_json)
