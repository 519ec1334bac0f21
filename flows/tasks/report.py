"""What a flow leaves for people: a summary on Prefect's Artifacts page, with the way to the MLflow run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from pipelines.reproduce.repro import summary
from pipelines.tracking.pages.links import Page
from pipelines.tracking.recorded import recorded_page, recorded_run_id
from pipelines.workspace import Workspace
from storage.errors import ShardlineError, TrackingError
from storage.redact import mask, without_login


@dataclass
class Outcome:
    """What became of a stage in a run of the pipeline."""

    did: str
    why: str = ""
    seconds: float = 0.0


def publish_summary(ws: Workspace, outcomes: Mapping[str, Outcome], pushed: str) -> None:
    """The recipe's summary: data version, metric against its baseline, registry decision, MLflow run, stages."""
    create_markdown_artifact(
        markdown(ws, outcomes, pushed), key=_key("summary", ws), description=f"Recipe {ws.params.recipe}"
    )


def link_run(ws: Workspace) -> str | None:
    """A link to the MLflow run that made the present model. Returns the run's id; None where it isn't in the store."""
    page, run = _page(ws), recorded_run_id(ws)
    if page is None or run is None:
        return None
    create_link_artifact(page.url, f"MLflow run {run}", key=_key("mlflow", ws), description=_first(ws, page) or None)
    return run


def _page(ws: Workspace) -> Page | None:
    """Of that run, where its store has it and answers."""
    try:
        return recorded_page(ws)
    except TrackingError:
        return None


def _first(ws: Workspace, page: Page) -> str:
    """What to do before the page opens."""
    return f"(the project's own store: run `make ui` first, in {ws.project})" if page.asleep else ""


def markdown(ws: Workspace, outcomes: Mapping[str, Outcome], pushed: str) -> str:
    """The summary's text."""
    facts = _facts(ws)
    if run := recorded_run_id(ws):
        page = _page(ws)
        place = without_login(ws.tracking_uri)
        link = f"[{run}]({page.url}) {_first(ws, page)}".rstrip() if page else f"{run}, which {place} doesn't show"
        facts["MLflow run"] = link
    facts["data pushed"] = pushed
    stages = [[name, o.did, o.why, f"{o.seconds:.1f}" if o.seconds else ""] for name, o in outcomes.items()]
    return "\n\n".join(
        [
            f"# {ws.params.recipe}",
            _table(["", ""], [list(row) for row in facts.items()]),
            _table(["stage", "outcome", "because", "seconds"], stages),
        ]
    )


def _facts(ws: Workspace) -> dict[str, str]:
    """The closing summary of `shardline repro`, and the whole data version; less where the job isn't done yet."""
    try:
        lines: dict[str, str] = dict(line.split(maxsplit=1) for line in summary(ws).splitlines())
        facts = {name: text for name, text in lines.items() if name in ("result", "model")}
        return {"data version": f"`{ws.zone('shards').manifest().digest}`", **facts}
    except (ShardlineError, OSError) as error:
        return {"incomplete": str(error)}


def _key(what: str, ws: Workspace) -> str:
    """An artifact's key: lowercase letters, digits and dashes."""
    return f"{what}-{re.sub('[^a-z0-9]+', '-', ws.params.recipe.lower()).strip('-')}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(text: str) -> str:
    return " ".join(mask(text).replace("|", "\\|").split())


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    return dict(json.loads(file.read_text())) if file.is_file() else {}
