"""`shardline repro`: what `dvc repro` can't know by itself, before and after it.

Before: a recipe's folder gets its dvc.yaml, and sources (globs, object stores) are asked what changed. After: a summary
that names the data version, the metric beside its baseline, and how to open the run.
"""

import json
from pathlib import Path
from typing import Any

from pipelines.console.progress import say
from pipelines.ingest.fetch import changed_sources
from pipelines.release.eligibility import waits
from pipelines.reproduce.dvc_process import Dvc
from pipelines.reproduce.preflight import check
from pipelines.reproduce.writer import exclusive
from pipelines.runtime.own_code import PIPELINE
from pipelines.tracking.pages.descriptions import result
from pipelines.tracking.recorded import where_is_the_run
from pipelines.workspace import DEFAULT_RECIPE, INTO_THE_PROJECT, Workspace, project_root, recipe_folder
from storage.atomic import write_atomically
from storage.errors import ParamsError, SourceError


def repro(recipe: str | None, *, force: bool = False, until: str | None = None) -> int:
    """Run what is stale of `recipe` (None: the current folder's). Returns the exit code: of the stage that failed,
    else of DVC."""
    ws = open_recipe(recipe)
    with exclusive(ws) as dvc:
        return _repro(ws, dvc, force=force, until=until)


def _repro(ws: Workspace, dvc: Dvc, *, force: bool, until: str | None) -> int:
    try:
        changed = changed_sources(ws)
    except SourceError as error:  # a clone with pulled data, away from the sources
        changed = []
        if ws.zone("raw").complete:  # else ingest says the same
            say(f"The sources were not asked for changes; going on with the raw data that is here. {error}")
    if changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        say(f"{len(changed)} source files changed: {names}")
        if code := dvc.run("repro", "--force", "--single-item", "ingest"):
            return code
    code = dvc.run("repro", *(["--force"] if force else []), *([until] if until else []))
    if code == 0 and until is None and waits(ws):
        say("The model was not registered when it was made; now it may be.")
        code = dvc.run("repro", "--force", "--single-item", "promote")
    if code == 0 and until is None:
        say("\n" + summary(ws))
    return code


def open_recipe(recipe: str | None) -> Workspace:
    """The recipe's workspace, with its dvc.yaml in place: a copy of the project's where it has none of its own."""
    project = project_root()
    if not (project / ".dvc").is_dir():
        raise ParamsError(
            f"{project} is no DVC project. {INTO_THE_PROJECT} In a copy without git: `git init && dvc init`."
        )
    folder = Path.cwd() if recipe is None else recipe_folder(project, recipe)
    ws = Workspace.open(folder)
    check(ws)
    if not (folder / PIPELINE).is_file():
        if not (project / PIPELINE).is_file():
            raise ParamsError(
                f"{folder} has no {PIPELINE}, which says what depends on what, and neither has {project}. Copy it from "
                "the root of Shardline's repository, or put the recipe into its folder recipes/."
            )
        write_atomically(folder / PIPELINE, (project / PIPELINE).read_bytes())
    return ws


def summary(ws: Workspace) -> str:
    """A few lines: data version, metric against its baseline, registry, how to open the run."""
    metrics = _json(ws.metrics("evaluate"))
    promotion = _json(ws.promotion)
    gate = ws.params.promote.gate
    name = ws.params.recipe
    here = "" if name == DEFAULT_RECIPE and ws.root == ws.project else f" --recipe {name}"
    return "\n".join(
        [
            f"recipe   {name}",
            f"data     {ws.zone('shards').manifest().digest[:12]} (shards; `shardline show{here}`)",
            f"result   {result(gate, metrics)}",
            f"model    {_outcome(promotion)}",
            f"run      {where_is_the_run(ws)}",
        ]
    )


def _outcome(promotion: dict[str, Any]) -> str:
    if not promotion:
        return "not promoted"
    if promotion["version"] is None:
        return f"{promotion['model']} is not registered ({promotion['decision']['reason']})"
    alias = "champion" if promotion["decision"]["promoted"] else "candidate"
    return f"{promotion['model']} version {promotion['version']} is {alias} ({promotion['decision']['reason']})"


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.is_file() else {}
