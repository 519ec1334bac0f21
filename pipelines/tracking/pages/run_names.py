"""What a run is called: its recipe, and what changed since the recipe's last training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.params.schema.flat import flat
from pipelines.tracking.names import mlflow_name
from pipelines.workspace import Workspace
from storage.redact import mask_value

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

TRAINING = "training"
KIND = "kind"  # the tag: training, or what it is else
CHANGED = "changed"
PREVIOUS = "changed.since"  # the run that it was compared with
VALUE_LIMIT = 6000  # characters of a parameter's value, which MLflow takes
_SHOWN = 3  # changes in a name
_SHORT = 40  # characters of a value in a name


def run_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they are logged: names that MLflow takes, values as text and without passwords."""
    return {mlflow_name(name): mask_value(name, str(value))[:VALUE_LIMIT] for name, value in values.items()}


def params_of(ws: Workspace) -> dict[str, str]:
    """The workspace's, with the defaults; without `compute`, which changes no result."""
    return run_params(flat(ws.params.model_dump(exclude={"compute"})))


def previous_training(client: "MlflowClient", experiment_id: str) -> "MlflowRun | None":
    """The last training of the experiment that came to its end."""
    wanted = f"tags.{KIND} = '{TRAINING}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return next(iter(found), None)


def changes(params: Mapping[str, str], tags: Mapping[str, str], before: "MlflowRun") -> list[str]:
    """What differs from the run `before`: parameters; the data; where nothing else did, the code."""
    old = before.data.params
    found = [
        f"{name} {_short(old.get(name, '–'))} → {_short(params.get(name, '–'))}"
        for name in sorted({*params, *old})
        if params.get(name) != old.get(name)
    ]
    found += _differs(tags, before.data.tags, "data.shards", "data")
    return found or _differs(tags, before.data.tags, "git.commit", "code")


def run_name(recipe: str, experiment: str | None, changed: list[str] | None) -> str:
    """digits: train.lr 0.003 → 0.001. `experiment` is DVC's; `changed` None: there was no training before."""
    what = "first" if changed is None else "same again" if not changed else ", ".join(changed[:_SHOWN])
    more = f" and {len(changed) - _SHOWN} more" if changed and len(changed) > _SHOWN else ""
    return f"{recipe}{f' {experiment}' if experiment else ''}: {what}{more}"


def _differs(tags: Mapping[str, str], old: Mapping[str, str], tag: str, word: str) -> list[str]:
    now, then = tags.get(tag), old.get(tag)
    return [f"{word} {then[:7]} → {now[:7]}"] if now and then and now != then else []


def _short(value: str) -> str:
    return value if len(value) <= _SHORT else value[: _SHORT - 1] + "…"
