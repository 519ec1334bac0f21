"""What goes through DVC, and what shows what it keeps of a recipe."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import LOOK, USE, AsJson, Named, Recipe, RecipeOption, app, print_json, workspace


@app.command(
    "dvc",
    rich_help_panel=USE,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def run_dvc(context: typer.Context) -> None:
    """Run any DVC command in the current folder's recipe.

    Commands that change the recipe (`shardline dvc exp run`) wait until no other process is at work there. `metrics
    show`, `plots diff` and the like show this recipe alone.
    """
    from pipelines.reproduce.repro import open_recipe
    from pipelines.reproduce.views import is_look, look
    from pipelines.reproduce.writer import exclusive

    ws = open_recipe(None)
    if is_look(context.args):
        sys.exit(look(ws, context.args))
    with exclusive(ws) as dvc:
        sys.exit(dvc.run(*context.args))


@app.command("experiments", rich_help_panel=LOOK)
def experiments_command(recipe: Named = None, as_json: AsJson = False, option: Recipe = None) -> None:
    """List the recipe's DVC experiments: the metric of its gate, and the parameters in which they differ."""
    from pipelines.experiments.comparison import report
    from pipelines.reproduce.views import experiments

    rows = experiments(workspace(recipe, option))
    if as_json:
        print_json(rows)
    else:
        report.show(rows)


@app.command(rich_help_panel=LOOK)
def plots(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(help="Git revisions or experiments whose curves are drawn into the same plots."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to which the page is written; by default .shardline/plots.")
    ] = None,
    recipe: RecipeOption = None,
) -> None:
    """Plot the recipe's curves in one HTML page that needs no network, unlike that of `dvc plots`."""
    from pipelines.reproduce.views import draw

    here = out.absolute() if out else None
    ws = workspace(recipe)
    draw(ws, revisions or [], here or ws.state / "plots")
