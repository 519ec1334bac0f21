"""The parameters of the flows: how the command line takes them, and how the form of Prefect's UI shows them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer
from pydantic import Field, WithJsonSchema

from pipelines.workspace import DEFAULT_RECIPE, project_root, recipes

RECIPE = DEFAULT_RECIPE


def _recipe_schema() -> dict[str, Any]:
    """The recipes that the project has as the flow is deployed, or the name of one that came later."""
    known = {"title": "recipe of this project", "type": "string", "enum": list(recipes(project_root())) or [RECIPE]}
    return {"anyOf": [known, {"title": "name of a newer one", "type": "string"}], "description": _RECIPE}


_RECIPE = "A recipe of `shardline recipes`: what is made of which data."
_RETRIES = "How often a stopped or failed training is resumed."
_DELAY = "Seconds before the first of these; it doubles each time."
_FORCE = "Run every stage, stale or not."
_PUSH = "Upload the outs to DVC's default remote, where there is one."
_TIER = "Which tier to fill: the node cache on this machine's disk, the hot cache in Redis, or both."
_STAGES = "The stages to record, as `dvc commit` does; the other flows do so for their own."
_RELEASE = "package writes and logs the model, promote registers it and moves the aliases."


@dataclass(frozen=True)
class Described:
    """What Prefect's form says of a parameter. (It ignores the description of a pydantic Field in an annotation.)"""

    text: str

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), "description": self.text}


class ReleaseStage(StrEnum):
    """A stage of the release flow."""

    package = "package"
    promote = "promote"


Recipe = Annotated[str, typer.Option("--recipe", "-r", help=_RECIPE), WithJsonSchema(_recipe_schema())]
Retries = Annotated[int, typer.Option(min=0, max=50, help=_RETRIES), Field(ge=0, le=50), Described(_RETRIES)]
RetryDelay = Annotated[float, typer.Option(min=0, help=_DELAY), Field(ge=0), Described(_DELAY)]
Force = Annotated[bool, typer.Option("--force", help=_FORCE), Described(_FORCE)]
Push = Annotated[bool, typer.Option(help=_PUSH), Described(_PUSH)]
Tier = Annotated[Literal["node", "hot", "both"], typer.Option(help=_TIER), Described(_TIER)]
Stages = Annotated[list[str], typer.Option(help=_STAGES), Described(_STAGES)]
ReleaseStages = Annotated[list[ReleaseStage], typer.Option(help=_RELEASE), Described(_RELEASE)]
