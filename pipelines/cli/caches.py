"""`shardline cache`."""

from typing import Annotated, Literal

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, app, workspace

Tier = Literal["node", "hot", "both"]

cache = typer.Typer(no_args_is_help=True, help="The caches between the lake and the training: fill, show, empty.")
app.add_typer(cache, name="cache", rich_help_panel=USE)


@cache.command("warm")
def warm_command(
    recipe: Named = None,
    tier: Annotated[Tier, typer.Option(help="Which tier to fill.")] = "both",
    rank: Annotated[int, typer.Option(min=0, help="Fill what this rank reads first …")] = 0,
    world: Annotated[int, typer.Option(min=1, help="… of so many.")] = 1,
    option: Recipe = None,
) -> None:
    """Fetch the shards of the train split, in the order in which training will read them."""
    from pipelines.caching.warm import warm_and_say

    warm_and_say(workspace(recipe, option), tier, rank, world)


@cache.command("show")
def show_command(recipe: Named = None, as_json: AsJson = False, option: Recipe = None) -> None:
    """Of each tier: bytes, shards, budget, hit ratio."""
    from pipelines.caching.warm import show

    show(workspace(recipe, option), as_json)


@cache.command("drop")
def drop_command(
    recipe: Named = None,
    tier: Annotated[Tier, typer.Option(help="Which tier to empty.")] = "both",
    everything: Annotated[bool, typer.Option("--all", help="What other recipes put there, too.")] = False,
    option: Recipe = None,
) -> None:
    """Remove this recipe's shards from the caches. The lake keeps them."""
    from pipelines.caching.warm import drop

    drop(workspace(recipe, option), tier, everything)
