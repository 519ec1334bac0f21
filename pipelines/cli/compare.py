"""`shardline compare` and `shardline find`: a recipe tried in several ways."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.app import USE, AsJson, Named, Recipe, app, aside, print_json, workspace

if TYPE_CHECKING:
    from pipelines.experiments.comparison.contest import Entry

compare = typer.Typer(no_args_is_help=True, help="Train a recipe in several ways, beside its outs, and compare.")
app.add_typer(compare, name="compare", rich_help_panel=USE)

find = typer.Typer(no_args_is_help=True, help="Find settings by trying.")
app.add_typer(find, name="find", rich_help_panel=USE)

Steps = Annotated[int | None, typer.Option(min=1, help="Of each training; by default as the recipe has.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the table and the plot.")]


@compare.command()
def optimizers(
    recipe: Named = None,
    only: Annotated[str | None, typer.Option(help="Some of them: adamw,sgd.")] = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Train with each optimiser, at a learning rate of its own; a table, a plot, and a run with a child each."""
    from pipelines.experiments.comparison import compare_optimizers

    here = out.absolute() if out else None  # the recipe's folder becomes the current one
    with aside(as_json):
        entries = compare_optimizers(workspace(recipe, option), _names(only), steps, here)
    _print_entries(entries, as_json)


@compare.command()
def communication(
    recipe: Named = None,
    ranks: Annotated[int, typer.Option(min=2, help="Copies of the model, on this machine.")] = 2,
    only: Annotated[str | None, typer.Option(help="Some of the ways: all-reduce,powersgd.")] = None,
    steps: Steps = None,
    local_steps: Annotated[int, typer.Option(min=2, help="After so many, local copies meet.")] = 16,
    out: Out = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """Train with copies that talk in each way of train.communication; loss against bytes, and a run with a child each."""
    from pipelines.experiments.comparison import compare_communication

    here = out.absolute() if out else None
    with aside(as_json):
        entries = compare_communication(workspace(recipe, option), ranks, _names(only), steps, local_steps, here)
    _print_entries(entries, as_json)


@compare.command()
def schedules(recipe: Named = None, out: Out = None, option: Recipe = None) -> None:
    """Draw the learning rate of every schedule over this recipe's steps; nothing is trained."""
    from pipelines.experiments.comparison import compare_schedules

    here = out.absolute() if out else None
    compare_schedules(workspace(recipe, option), here)


@find.command()
def batch(
    recipe: Named = None,
    most: Annotated[int, typer.Option(min=1, help="Largest size to try.")] = 4096,
    memory_mb: Annotated[
        float | None, typer.Option(help="On a CPU: MiB to stay within; by default 0.8 of free.")
    ] = None,
    as_json: AsJson = False,
    option: Recipe = None,
) -> None:
    """The largest batch that the device holds, with samples a second and memory of each size."""
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
