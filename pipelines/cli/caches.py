"""`shardline cache`."""

from typing import Annotated, Literal

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, app, workspace

Tier = Literal["node", "hot", "both"]

cache = typer.Typer(
    no_args_is_help=True, help="Fill, show or empty the caches of shards between a remote lake and the training."
)
app.add_typer(cache, name="cache", rich_help_panel=USE)


@cache.command("warm")
def warm_command(
    recipe: Named = None,
    tier: Annotated[
        Tier, typer.Option(help="Cache to fill: node (this machine's disk), hot (Redis) or both.")
    ] = "both",
    rank: Annotated[int, typer.Option(min=0, help="Fill the caches with what this rank reads, counted from 0.")] = 0,
    world: Annotated[int, typer.Option(min=1, help="Number of ranks of the training that --rank is one of.")] = 1,
    option: Recipe = None,
) -> None:
    """Fetch the shards of the train split into the caches, in the order in which training will read them."""
    from pipelines.caching.warm import warm_and_say

    warm_and_say(workspace(recipe, option), tier, rank, world)


@cache.command("show")
def show_command(recipe: Named = None, as_json: AsJson = False, option: Recipe = None) -> None:
    """Show what the node cache and the hot cache hold: bytes, shards, budget, hit ratio."""
    from pipelines.caching.warm import show

    show(workspace(recipe, option), as_json)


@cache.command("drop")
def drop_command(
    recipe: Named = None,
    tier: Annotated[
        Tier, typer.Option(help="Cache to empty: node (this machine's disk), hot (Redis) or both.")
    ] = "both",
    everything: Annotated[
        bool, typer.Option("--all", help="Remove the shards of all recipes, not only of this one.")
    ] = False,
    option: Recipe = None,
) -> None:
    """Remove this recipe's shards from the caches. The lake keeps them."""
    from pipelines.caching.warm import drop

    drop(workspace(recipe, option), tier, everything)
