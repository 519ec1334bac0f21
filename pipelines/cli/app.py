"""The application, and what its commands share: how they take a recipe, and how they print JSON."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from storage.errors import ParamsError

STAGES, LOOK, USE = "Stages (run by DVC, in this order)", "Look", "Use"

app = typer.Typer(
    name="shardline",
    help="From raw data to a tracked, resumable, sharded training run.\n\n"
    "`shardline repro` runs what is stale: ingest → curate → shard → train → evaluate → package → promote. "
    "Each stage is also a command of its own, which DVC calls.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def recipe_names(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from pipelines.workspace import project_root, recipes

    return [name for name in recipes(project_root()) if name.startswith(incomplete)]


_RECIPE = "Name of a recipe, as `shardline recipes` lists them; by default that of the current folder's params.yaml."
Named = Annotated[str | None, typer.Argument(metavar="RECIPE", help=_RECIPE, autocompletion=recipe_names)]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", help="The recipe, as an option instead of an argument.", autocompletion=recipe_names
    ),
]
#: Of a command whose arguments are something else.
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help=_RECIPE, autocompletion=recipe_names)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON value to stdout, for programs; everything else goes to stderr.")
]


def one_of(named: str | None, recipe: str | None) -> str | None:
    """The recipe, given either way. Raises ParamsError where the two differ."""
    if named is not None and recipe is not None and named != recipe:
        raise ParamsError(f"Two recipes: {named!r} and --recipe {recipe!r}. Give one of them.")
    return recipe if named is None else named


def workspace(named: str | None, recipe: str | None = None) -> Any:
    """The workspace of the recipe, whose folder becomes the current one."""
    from pipelines.workspace import Workspace, project_root, recipe_folder

    if (chosen := one_of(named, recipe)) is not None:
        os.chdir(recipe_folder(project_root(), chosen))  # where its own modules are imported from
    return Workspace.open()


def print_json(value: Any) -> None:
    """As a program reads it."""
    from pipelines.console.formats import json_text
    from pipelines.console.progress import say

    say(json_text(value))


@contextlib.contextmanager
def aside(as_json: bool) -> Iterator[None]:
    """Where JSON is wanted, what is said meanwhile goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"shardline {version('shardline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """What `--help` says stands at `app`."""
