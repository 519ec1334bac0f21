"""What there is, how it is, and where time goes."""

from typing import Annotated, Any

import typer

from pipelines.cli.app import LOOK, AsJson, Named, Recipe, app, aside, print_json, workspace

ZONES = ("raw", "curated", "shards")


def _zone(name: str) -> str:
    """As it is. A recipe's name is a likely mistake: all other commands take one there."""
    if name in ZONES:
        return name
    raise typer.BadParameter(f"{name!r} is no zone: {', '.join(ZONES)}. A recipe is given by --recipe: --recipe {name}")


def _zone_argument(help: str) -> Any:
    return typer.Argument(parser=_zone, metavar="ZONE", help=help, autocompletion=lambda: [*ZONES])


@app.command("profile", rich_help_panel=LOOK)
def profile_command(
    recipe: Named = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=100_000, help="Steps to measure; by default as many as take about 5 s.")
    ] = None,
    warm_up: Annotated[int, typer.Option(min=2, help="Warm-up steps before the measured ones.")] = 10,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Measure where a training step's time goes; say what to change and what to expect of it.

    Leaves the recipe's outputs and checkpoints alone.
    """
    from pipelines.profiling.profile import profile

    with aside(as_json):
        bottleneck = profile(workspace(recipe, option), steps=steps, warm_up=warm_up)
    if as_json:
        print_json(bottleneck.to_json())


@app.command("doctor", rich_help_panel=LOOK)
def doctor_command(recipe: Named = None, as_json: AsJson = False, option: Recipe = None) -> None:
    """Check this machine: processors, memory, accelerators, disks, network; how fast they are, and what is wrong."""
    from pipelines.machine.doctor import doctor

    if recipe is not None or option is not None:
        workspace(recipe, option)  # goes to its folder
    doctor(as_json=as_json)


@app.command(rich_help_panel=LOOK)
def recipes(as_json: AsJson = False) -> None:
    """List the recipes of this project: sources, model, version of the shards, whether a model was promoted."""
    from pipelines.reproduce.inspect import list_recipes, show_recipes

    if as_json:
        print_json(list_recipes())
    else:
        show_recipes()


@app.command(rich_help_panel=LOOK)
def params(
    section: Annotated[
        str | None, typer.Argument(help="Only parameters whose names start with this: train, stream.lanes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every parameter: type, range, default and meaning."""
    from pipelines.reproduce.inspect import list_params, show_params

    if as_json:
        print_json(list_params(section))
    else:
        show_params(section)


@app.command(rich_help_panel=LOOK)
def show(
    zone: Annotated[str, _zone_argument("Zone to show: raw, curated or shards.")] = "shards",
    recipe: Named = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Show what a zone's manifest holds: version, lineage, splits, objects."""
    from pipelines.reproduce.inspect import describe_zone, show_zone

    ws = workspace(recipe, option)
    if as_json:
        print_json(describe_zone(ws, zone))
    else:
        show_zone(ws, zone)


@app.command(rich_help_panel=LOOK)
def verify(
    zone: Annotated[str | None, _zone_argument("Zone to verify: raw, curated or shards; by default all.")] = None,
    recipe: Named = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Read every object again and compare its digest with the manifest's."""
    from pipelines.reproduce.inspect import report_damage, verify_zones

    with aside(as_json):
        found = verify_zones(workspace(recipe, option), zone)
    if as_json:
        print_json(found)
    report_damage(found)


@app.command(rich_help_panel=LOOK)
def replay(
    step: Annotated[int, typer.Option(min=1, help="Step of the training to repeat, counted from 1.")],
    recipe: Named = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every sample of the batch, instead of the ten with the largest loss.")
    ] = False,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Repeat one training step: show the loss of its samples, its gradient norm, and where values stop being finite."""
    from pipelines.profiling.replay import show_replay

    show_replay(workspace(recipe, option), step, everything=everything, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default can be reached from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Open MLflow's UI over the project's store: runs, curves and the model registry."""
    from pipelines.tracking.ui import open_ui

    open_ui(host, port)
