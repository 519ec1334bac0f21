"""The `shardline` command. Nothing heavy is imported here: `--help` answers at once, each command imports its own."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from pipelines import collector, dvc_commands
from pipelines.options import LOOK, STAGES, USE, Recipe, stage_workspace, workspace
from storage.errors import Interrupted, ShardlineError

app = typer.Typer(
    name="shardline",
    help="From raw data to a tracked, resumable, sharded training run.\n\n"
    "`shardline repro` runs what is stale: ingest → curate → shard → train → evaluate → package → promote. "
    "The stages are also commands of their own; DVC calls them so.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dvc_commands.app)

cache = typer.Typer(no_args_is_help=True, help="The caches between the lake and the training: fill, show, empty.")
app.add_typer(cache, name="cache", rich_help_panel="Use")

compare = typer.Typer(no_args_is_help=True, help="Train a recipe in several ways, beside its outs, and compare.")
app.add_typer(compare, name="compare", rich_help_panel="Use")

find = typer.Typer(no_args_is_help=True, help="Find settings by trying.")
app.add_typer(find, name="find", rich_help_panel="Use")

CacheTier = Literal["node", "hot", "both"]
ZoneName = Literal["raw", "curated", "shards"]


def main() -> None:
    """Entry point: run a command; report our own errors without a traceback."""
    # OpenMP's waiting threads should sleep: they spin by default, and where another process computes too they take the
    # cores from those that they wait for (two trainings on two cores: steps of 2.3 s instead of 0.5 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    collector.rest()
    try:
        app()
    except ShardlineError as error:
        _leave(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from storage.atomic import full_disk, not_writable

        if (known := full_disk(error) or not_writable(error)) is None:
            raise
        _leave(str(known), known.exit_code)


def _stop(signum: int, frame: FrameType | None) -> None:
    word = "Interrupted" if signum == signal.SIGINT else "Terminated"
    raise Interrupted(f"{word}. What was finished is kept; the same command goes on from there.", signum)


def _leave(message: str, code: int) -> None:
    print(f"shardline: {message}", file=sys.stderr)
    sys.exit(code)


def _data_stage(name: str, recipe: str | None) -> None:
    from pipelines.ingest import data_stage
    from pipelines.ingest.stage import journal_of, run
    from pipelines.progress import say

    with stage_workspace(name, recipe) as ws:
        say(str(run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)))


@app.command(rich_help_panel=USE)
def repro(
    recipe: Recipe = None,
    force: Annotated[bool, typer.Option("--force", help="Run every stage, stale or not.")] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
) -> None:
    """Run what is stale of a recipe: new source files, changed parameters, missing outs. Resumes what was cut off."""
    from pipelines.repro import repro as run

    sys.exit(run(recipe, force=force, until=until))


@app.command(rich_help_panel=STAGES)
def ingest(recipe: Recipe = None) -> None:
    """Fetch sources into the raw zone, byte for byte; only files that are new or changed."""
    _data_stage("ingest", recipe)


@app.command(rich_help_panel=STAGES)
def curate(recipe: Recipe = None) -> None:
    """Type, validate, deduplicate and split the raw files; set aside, with a reason, what can't be used."""
    _data_stage("curate", recipe)


@app.command(rich_help_panel=STAGES)
def shard(recipe: Recipe = None) -> None:
    """Write the curated samples, shuffled, as Arrow shards that training maps."""
    _data_stage("shard", recipe)


@app.command(rich_help_panel=STAGES)
def train(recipe: Recipe = None) -> None:
    """Train the model of params.yaml on the shards; goes on from the last checkpoint when it was cut off."""
    from pipelines.training import train as run

    with stage_workspace("train", recipe, together=True) as ws:
        run(ws)


@app.command(rich_help_panel=STAGES)
def evaluate(recipe: Recipe = None) -> None:
    """Measure the model on held-out samples beside its baselines."""
    from pipelines.evaluation import evaluate as run

    with stage_workspace("evaluate", recipe) as ws:
        run(ws)


@app.command(rich_help_panel=STAGES)
def package(recipe: Recipe = None) -> None:
    """Write the model with signature, input example and model card, as MLflow serves it."""
    from pipelines.release import package as run

    with stage_workspace("package", recipe) as ws:
        run(ws)


@app.command(rich_help_panel=STAGES)
def promote(recipe: Recipe = None) -> None:
    """Register the model as candidate; make it champion if the gate passes."""
    from pipelines.release import promote as run

    with stage_workspace("promote", recipe) as ws:
        run(ws)


@app.command(rich_help_panel=USE)
def generate(
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens (bytes) to write.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the likeliest K tokens only.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    alias: Annotated[str, typer.Option(help="champion, candidate, or a version number.")] = "champion",
    recipe: Recipe = None,
) -> None:
    """Write text with a registered language model."""
    from pipelines.release import generate as run

    run(recipe, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, alias=alias)


@app.command(rich_help_panel=USE)
def predict(
    files: Annotated[list[Path], typer.Argument(help="Images, or CSV files with the features' columns.")],
    alias: Annotated[str, typer.Option(help="champion, candidate, or a version number.")] = "champion",
    recipe: Recipe = None,
) -> None:
    """Classify files with a registered model: one line a file (or a row), label and probability."""
    from pipelines.release import predict as run

    run(recipe, files, alias=alias)


@compare.command("optimizers")
def compare_optimizers(
    recipe: Recipe = None,
    only: Annotated[str | None, typer.Option(help="Some of them: adamw,sgd.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training; by default as the recipe has.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the plot.")] = None,
) -> None:
    """Train with each optimiser, at a learning rate of its own; a table, a plot, and a run with a child each."""
    from pipelines.training.comparison import compare_optimizers as run

    here = out.absolute() if out else None  # the recipe's folder becomes the current one
    run(workspace(recipe), only.split(",") if only else None, steps, here)


@compare.command("network")
def compare_network(
    recipe: Recipe = None,
    ranks: Annotated[int, typer.Option(min=2, help="Copies of the model, on this machine.")] = 2,
    only: Annotated[str | None, typer.Option(help="Some of the ways: all-reduce,powersgd.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training; by default as the recipe has.")] = None,
    local_steps: Annotated[int, typer.Option(min=2, help="After so many, local copies meet.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the plot.")] = None,
) -> None:
    """Train with copies that talk in each way of train.network; loss against bytes, and a run with a child each."""
    from pipelines.training.comparison import compare_network as run

    here = out.absolute() if out else None
    run(workspace(recipe), ranks, only.split(",") if only else None, steps, local_steps, here)


@compare.command("schedules")
def compare_schedules(
    recipe: Recipe = None, out: Annotated[Path | None, typer.Option(help="Folder for the plot.")] = None
) -> None:
    """Draw the learning rate of every schedule over this recipe's steps; nothing is trained."""
    from pipelines.training.comparison import compare_schedules as run

    here = out.absolute() if out else None
    run(workspace(recipe), here)


@find.command("batch")
def find_batch(
    recipe: Recipe = None,
    most: Annotated[int, typer.Option(min=1, help="Largest size to try.")] = 4096,
    memory_mb: Annotated[
        float | None, typer.Option(help="On a CPU: MiB to stay within; by default 0.8 of free.")
    ] = None,
) -> None:
    """The largest batch that the device holds, with samples a second and memory of each size."""
    from pipelines.training.largest import find_batch as run

    run(workspace(recipe), most, memory_mb)


@cache.command("warm")
def cache_warm(
    tier: Annotated[CacheTier, typer.Option(help="Which tier to fill.")] = "both",
    rank: Annotated[int, typer.Option(min=0, help="Fill what this rank reads first …")] = 0,
    world: Annotated[int, typer.Option(min=1, help="… of so many.")] = 1,
    recipe: Recipe = None,
) -> None:
    """Fetch the shards of the train split, in the order in which training will read them."""
    from pipelines.warm import warm_and_say

    warm_and_say(workspace(recipe), tier, rank, world)


@cache.command("show")
def cache_show(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False, recipe: Recipe = None
) -> None:
    """Of each tier: bytes, shards, budget, hit ratio."""
    from pipelines.warm import show as run

    run(workspace(recipe), as_json)


@cache.command("drop")
def cache_drop(
    tier: Annotated[CacheTier, typer.Option(help="Which tier to empty.")] = "both",
    everything: Annotated[bool, typer.Option("--all", help="What other recipes put there, too.")] = False,
    recipe: Recipe = None,
) -> None:
    """Remove this recipe's shards from the caches. The lake keeps them."""
    from pipelines.warm import drop as run

    run(workspace(recipe), tier, everything)


@app.command(rich_help_panel=LOOK)
def profile(
    steps: Annotated[
        int | None, typer.Option(min=2, max=100_000, help="Steps that are measured; about 5 s of them by default.")
    ] = None,
    warm_up: Annotated[int, typer.Option(min=2, help="Steps before, which don't count.")] = 10,
    recipe: Recipe = None,
) -> None:
    """Where a training step's time goes, what to change and what to expect of it. Leaves the training's state alone."""
    from pipelines.diagnosis.profiling import profile as run

    run(workspace(recipe), steps=steps, warm_up=warm_up)


@app.command(rich_help_panel=LOOK)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False, recipe: Recipe = None
) -> None:
    """This machine: processors, memory, accelerators, disks, network; how fast they are, and what is wrong."""
    from pipelines.diagnosis.doctor import doctor as run

    if recipe is not None:
        workspace(recipe)  # goes to its folder
    run(as_json=as_json)


@app.command(rich_help_panel=LOOK)
def recipes() -> None:
    """The recipes of this project: what they make of which sources, and how far each has come."""
    from pipelines.inspect import show_recipes

    show_recipes()


@app.command(rich_help_panel=LOOK)
def params(
    section: Annotated[str | None, typer.Argument(help="Only names that start with this: train, stream.lanes.")] = None,
) -> None:
    """Every parameter: type, range, default and meaning."""
    from pipelines.inspect import show_params

    show_params(section)


@app.command(rich_help_panel=LOOK)
def show(zone: Annotated[ZoneName, typer.Argument(help="Zone.")] = "shards", recipe: Recipe = None) -> None:
    """What a zone's manifest holds: version, lineage, splits, objects."""
    from pipelines.inspect import show_zone

    show_zone(workspace(recipe), zone)


@app.command(rich_help_panel=LOOK)
def verify(
    zone: Annotated[ZoneName | None, typer.Argument(help="Zone; all of them by default.")] = None,
    recipe: Recipe = None,
) -> None:
    """Read every object again and compare its digest with the manifest's."""
    from pipelines.inspect import verify_zones

    verify_zones(workspace(recipe), zone)


@app.command(rich_help_panel=LOOK)
def replay(
    step: Annotated[int, typer.Option(min=1, help="Of the training, counted from 1.")],
    everything: Annotated[bool, typer.Option("--all", help="Every sample of the batch, not the worst ten.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    recipe: Recipe = None,
) -> None:
    """A training step's batch once more: loss of each sample, gradient, and where values stop being finite."""
    from pipelines.training.replay import show_replay

    show_replay(workspace(recipe), step, everything=everything, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Browse the runs and the registry: MLflow's UI over the project's store."""
    from pipelines.inspect import open_ui

    open_ui(host, port)


if __name__ == "__main__":
    main()
