"""`shardline compare` and `shardline find`: a recipe tried in several ways."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, app, aside, print_json, workspace

if TYPE_CHECKING:
    from pipelines.experiments.comparison.contest import Entry

compare = typer.Typer(
    no_args_is_help=True, help="Train a recipe in several ways and compare the results; its outputs stay as they are."
)
app.add_typer(compare, name="compare", rich_help_panel=USE)

find = typer.Typer(no_args_is_help=True, help="Find the best value of a setting by trying several.")
app.add_typer(find, name="find", rich_help_panel=USE)

Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of each training; by default as many as the recipe trains.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder to which the results are written; by default the recipe's .shardline/compare."),
]


@compare.command()
def optimizers(
    recipe: Named = None,
    only: Annotated[
        str | None, typer.Option(help="Optimisers to compare, separated by commas (adamw,sgd); by default all.")
    ] = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Train a recipe with each optimiser, at a learning rate of its own.

    Makes a table, a plot, and an MLflow run with a child run for each.
    """
    from pipelines.experiments.comparison import compare_optimizers

    here = out.absolute() if out else None  # the recipe's folder becomes the current one
    with aside(as_json):
        entries = compare_optimizers(workspace(recipe, option), _names(only), steps, here)
    _print_entries(entries, as_json)


@compare.command()
def communication(
    recipe: Named = None,
    ranks: Annotated[int, typer.Option(min=2, help="Ranks on this machine, each with a copy of the model.")] = 2,
    only: Annotated[
        str | None, typer.Option(help="Ways to compare, separated by commas (all-reduce,powersgd); by default all.")
    ] = None,
    steps: Steps = None,
    local_steps: Annotated[
        int, typer.Option(min=2, help="Steps between the averagings of copies that take local steps.")
    ] = 16,
    out: Out = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Train a recipe on several ranks with each way to average gradients (train.communication).

    Makes a table and a plot of loss against bytes sent, and an MLflow run with a child run for each.
    """
    from pipelines.experiments.comparison import compare_communication

    here = out.absolute() if out else None
    with aside(as_json):
        entries = compare_communication(workspace(recipe, option), ranks, _names(only), steps, local_steps, here)
    _print_entries(entries, as_json)


@compare.command()
def schedules(recipe: Named = None, out: Out = None, option: Recipe = None) -> None:
    """Plot the learning rate of every schedule over the recipe's steps. Trains nothing."""
    from pipelines.experiments.comparison import compare_schedules

    here = out.absolute() if out else None
    compare_schedules(workspace(recipe, option), here)


@find.command()
def batch(
    recipe: Named = None,
    most: Annotated[int, typer.Option(min=1, help="Largest batch size to try, in samples.")] = 4096,
    memory_mb: Annotated[
        float | None,
        typer.Option(help="Memory in MiB that a training on a CPU may take; by default 0.8 of what is free."),
    ] = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Find the largest batch that fits into the device's memory, and the smallest that is about as fast.

    Shows samples per second and peak memory of each size.
    """
    from pipelines.experiments.batch_size import find_batch

    with aside(as_json):
        trials = find_batch(workspace(recipe, option), most, memory_mb)
    if as_json:
        print_json([asdict(trial) for trial in trials])


def _names(only: str | None) -> list[str] | None:
    return only.split(",") if only else None


def _print_entries(entries: "list[Entry]", as_json: bool) -> None:
    """The best first."""
    if as_json:
        print_json([_entry(entry) for entry in entries])


def _entry(entry: "Entry") -> dict[str, Any]:
    course = entry.course
    about = {"name": entry.name, "train_loss": entry.train_loss, **entry.metrics}
    return about | {name: getattr(course, name) for name in ("passes", "seconds", "sent_mb", "failed")}
