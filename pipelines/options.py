"""What the `shardline` commands share: the option --recipe, and the workspace that it names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

STAGES, LOOK, USE = "Stages (run by DVC, in this order)", "Look", "Use"
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", help="A recipe of `shardline recipes`; by default the current folder's params.yaml."
    ),
]


def workspace(recipe: str | None) -> Any:
    """The workspace of a recipe, whose folder becomes the current one."""
    from pipelines.workspace import Workspace, project_root, recipe_folder

    if recipe is not None:
        os.chdir(recipe_folder(project_root(), recipe))  # where its own modules are imported from
    return Workspace.open()


@contextmanager
def stage_workspace(name: str, recipe: str | None, *, together: bool = False) -> Iterator[Any]:
    """The workspace of a stage that is at work in it: alone, or `together` with other processes of a training."""
    from pipelines.writer import stage_at_work

    ws = workspace(recipe)
    with stage_at_work(ws, name, shared=together and _one_of_several(ws)):
        yield ws


def _one_of_several(ws: Any) -> bool:
    from pipelines.training.launchers.placement import started_by_others

    return ws.params.compute.nodes > 1 or "PET_NNODES" in os.environ or started_by_others()
