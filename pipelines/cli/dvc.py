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
    """Any DVC command in the current folder's recipe: `shardline dvc exp run` waits until nobody else is at work there;
    `metrics show`, `plots diff` and their like show this recipe alone."""
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
    """The recipe's DVC experiments: its gate's metric, and the parameters in which they differ."""
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
        list[str] | None, typer.Argument(help="Git revisions or experiments to lay over one another.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; by default .shardline/plots.")] = None,
    recipe: RecipeOption = None,
) -> None:
    """The recipe's curves in one page, which needs no network; DVC's own page loads its scripts from one."""
    from pipelines.reproduce.views import draw

    here = out.absolute() if out else None
    ws = workspace(recipe)
    draw(ws, revisions or [], here or ws.state / "plots")
