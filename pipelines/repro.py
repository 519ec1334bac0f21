"""`shardline repro`: what `dvc repro` can't know by itself, before and after it.

Before: a recipe's folder gets its dvc.yaml, and sources (globs, object stores) are asked what changed. After: a summary
that names the data version, the metric beside its baseline, and how to open the run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.ingest.fetch import changed_sources
from pipelines.preflight import check
from pipelines.progress import say
from pipelines.release.eligible import waits
from pipelines.tracking.note import result
from pipelines.tracking.recorded import where_is_the_run
from pipelines.workspace import DEFAULT_RECIPE, INTO_THE_PROJECT, Workspace, project_root, recipe_folder
from storage.atomic import write_atomically
from storage.errors import ParamsError, SourceError

PIPELINE = "dvc.yaml"
_ROOM = 1 << 20  # bytes that must be free for DVC to write its lock and its state


def repro(recipe: str | None, *, force: bool = False, until: str | None = None) -> int:
    """Run what is stale of `recipe` (None: the current folder's). Returns the exit code of `dvc repro`."""
    from pipelines.versions import exclusive

    ws = open_recipe(recipe)
    with exclusive(ws):
        return _repro(ws, force=force, until=until)


def _repro(ws: Workspace, *, force: bool, until: str | None) -> int:
    try:
        changed = changed_sources(ws)
    except SourceError as error:  # a clone with pulled data, away from the sources
        changed = []
        if ws.zone("raw").complete:  # else ingest says the same
            say(f"The sources were not asked for changes; going on with the raw data that is here. {error}")
    if changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        say(f"{len(changed)} source files changed: {names}")
        if code := run_dvc(ws.root, "repro", "--force", "--single-item", "ingest"):
            return code
    code = run_dvc(ws.root, "repro", *(["--force"] if force else []), *([until] if until else []))
    if code == 0 and until is None and waits(ws):
        say("The model was not registered when it was made; now it may be.")
        code = run_dvc(ws.root, "repro", "--force", "--single-item", "promote")
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


def run_dvc(folder: Path, *arguments: str) -> int:
    """Run DVC in `folder`. SIGINT and SIGTERM reach the stage that runs, which saves and ends; DVC by itself leaves it
    running on SIGTERM."""
    process = start_dvc(folder, *arguments)
    with _forwarding(process):
        code = process.wait()
    if code and shutil.disk_usage(folder).free < _ROOM:
        say(f"{folder}: the disk is full. Free some space and run the same command again: it goes on from here.")
    return code


def start_dvc(folder: Path, *arguments: str, **options: Any) -> "subprocess.Popen[Any]":
    """Start DVC in `folder` and in a session of its own, with this environment's commands first on PATH. `options`
    go to Popen."""
    environment = {**os.environ, "PATH": commands_path()}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **options)


def commands_path() -> str:
    """PATH with this environment's commands (shardline, dvc) first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


@contextmanager
def _forwarding(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    def forward(signum: int, frame: FrameType | None) -> None:
        import psutil

        try:
            below = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        # The innermost shardline command is the stage; it tells its own ranks.
        stages = [p for p in below if any(Path(part).name == "shardline" for part in _command(p))]
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            for stage in stages[-1:] or [psutil.Process(process.pid)]:
                stage.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _command(process: "psutil.Process") -> list[str]:  # type: ignore[name-defined] # noqa: F821
    import psutil

    try:
        return list(process.cmdline()[:2])
    except psutil.Error:
        return []


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
