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


_RECIPE = "Name of the recipe to run, as `shardline recipes` lists them."
_RETRIES = "How often a training that was stopped or failed is resumed from its last checkpoint."
_DELAY = "Seconds before a stopped or failed training is resumed for the first time; the delay doubles each time."
_FORCE = "Run every stage, also those that are up to date."
_PUSH = "Upload the recipe's outputs to DVC's default remote, if there is one."
_TIER = "Cache to fill: node (this machine's disk), hot (Redis) or both."
_STAGES = "Stages to record in dvc.lock, as `dvc commit` does; stages that a flow has run are recorded already."
_RELEASE = "Stages to run: package writes and logs the model, promote registers it and moves its aliases."


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
