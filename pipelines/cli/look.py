"""What there is, how it is, and where time goes."""

from typing import Annotated, Literal

import typer

from pipelines.cli.app import LOOK, AsJson, Named, Recipe, app, aside, print_json, workspace

Zone = Literal["raw", "curated", "shards"]


@app.command("profile", rich_help_panel=LOOK)
def profile_command(
    recipe: Named = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=100_000, help="Steps that are measured; about 5 s of them by default.")
    ] = None,
    warm_up: Annotated[int, typer.Option(min=2, help="Steps before, which don't count.")] = 10,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Where a training step's time goes, what to change and what to expect of it. Leaves the training's state alone."""
    from pipelines.profiling.profile import profile

    with aside(as_json):
        bottleneck = profile(workspace(recipe, option), steps=steps, warm_up=warm_up)
    if as_json:
        print_json(bottleneck.to_json())


@app.command("doctor", rich_help_panel=LOOK)
def doctor_command(recipe: Named = None, as_json: AsJson = False, option: Recipe = None) -> None:
    """This machine: processors, memory, accelerators, disks, network; how fast they are, and what is wrong."""
    from pipelines.machine.doctor import doctor

    if recipe is not None or option is not None:
        workspace(recipe, option)  # goes to its folder
    doctor(as_json=as_json)


@app.command(rich_help_panel=LOOK)
def recipes(as_json: AsJson = False) -> None:
    """The recipes of this project: what they make of which sources, and how far each has come."""
    from pipelines.reproduce.inspect import list_recipes, show_recipes

    if as_json:
        print_json(list_recipes())
    else:
        show_recipes()


@app.command(rich_help_panel=LOOK)
def params(
    section: Annotated[str | None, typer.Argument(help="Only names that start with this: train, stream.lanes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every parameter: type, range, default and meaning."""
    from pipelines.reproduce.inspect import list_params, show_params

    if as_json:
        print_json(list_params(section))
    else:
        show_params(section)


@app.command(rich_help_panel=LOOK)
def show(
    zone: Annotated[Zone, typer.Argument(help="Zone.")] = "shards",
    recipe: Named = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """What a zone's manifest holds: version, lineage, splits, objects."""
    from pipelines.reproduce.inspect import describe_zone, show_zone

    ws = workspace(recipe, option)
    if as_json:
        print_json(describe_zone(ws, zone))
    else:
        show_zone(ws, zone)


@app.command(rich_help_panel=LOOK)
def verify(
    zone: Annotated[Zone | None, typer.Argument(help="Zone; all of them by default.")] = None,
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
    step: Annotated[int, typer.Option(min=1, help="Of the training, counted from 1.")],
    recipe: Named = None,
    everything: Annotated[bool, typer.Option("--all", help="Every sample of the batch, not the worst ten.")] = False,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """A training step's batch once more: loss of each sample, gradient, and where values stop being finite."""
    from pipelines.profiling.replay import show_replay

    show_replay(workspace(recipe, option), step, everything=everything, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Browse the runs and the registry: MLflow's UI over the project's store."""
    from pipelines.tracking.ui import open_ui

    open_ui(host, port)
