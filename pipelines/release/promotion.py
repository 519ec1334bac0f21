"""The promote stage: register the package, make it candidate, and champion if the gate passes. Experiments, and code
that is not committed, register nothing (`eligible`).

The gate compares on the same data: the champion's recorded metrics count where they are of the same data version and
split; otherwise its weights are evaluated on the present data, where its code is still what it was. Every step may be
repeated: killed and run again, it ends in the same state and the same data/promotion.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.progress import say, stepping
from pipelines.evaluation import evaluate_model
from pipelines.models import load_model
from pipelines.params import Metric
from pipelines.params.schema.flat import numbers
from pipelines.release.descriptions import describe_promotion
from pipelines.release.eligibility import why_not
from pipelines.release.fingerprint import ARTIFACTS, METADATA, MODEL, OWN_CODE, WEIGHTS, evaluation
from pipelines.release.gate import Decision, judge
from pipelines.release.logged_model import log_package
from pipelines.release.registry import (
    CANDIDATE,
    CHAMPION,
    INPUTS,
    TASK,
    find_version,
    own_of_champion,
    registry_errors,
    version_files,
)
from pipelines.runtime.own_code import code_behind
from pipelines.tracking import Run, Store, connect, lineage_tags, open_run
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.digest import digest_file, digest_json
from storage.errors import DigestError, FormatError, ShardlineError, TrackingError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from pipelines.models import Own

FORMAT = 1
#: Tags of a version: the data it was trained on and measured on, the split, the metrics, and what the gate decided.
DATA, SPLIT, METRICS, DECISION = "data.shards", "evaluate.split", "metrics", "promotion"
CHOSEN = "evaluate.metrics"  # key → digest of each metric that the recipe chose
LONGEST_TAG = 100_000  # characters, of a version in MLflow's registry


@dataclass(frozen=True)
class Champion:
    """What the gate compares with: flat metrics on the present data, and where they come from."""

    version: "ModelVersion"
    metrics: Mapping[str, float]
    source: str


def promote_package(ws: Workspace) -> dict[str, Any]:
    """Register data/package and move aliases. Returns what data/promotion.json holds.

    A gate that refuses is no failure, nor is a model that may not be registered. Raises TrackingError when MLflow
    cannot be used, FormatError without a package, DigestError for a damaged one, ParamsError when the gate names a
    metric that does not exist.
    """
    facts = _facts(ws)
    metrics = evaluation(ws)
    # A wrong name in the gate shows before anything is registered.
    alone = judge(ws.params.promote.gate, metrics, None)
    if reason := why_not(ws):
        return _write(ws, facts, None, None, replace(alone, promoted=False, reason=reason).to_json())
    with stepping("promote", 4) as begin:
        begin("open the registry")
        store = connect(ws)
        begin("register the model")
        version = _register(ws, store, facts, metrics)
        client, name = store.client, ws.registered_model
        with registry_errors(store):
            client.set_registered_model_alias(name, CANDIDATE, version.version)
        begin("compare with the champion")
        champion = find_version(store, name, CHAMPION)
        decision = _decide(ws, store, version, champion, facts, metrics)
        begin("move the aliases")
        if decision["promoted"]:
            with registry_errors(store):
                client.set_model_version_tag(name, version.version, DECISION, json.dumps(decision))
                client.set_registered_model_alias(name, CHAMPION, version.version)
    result = _write(ws, facts, version, version if decision["promoted"] else champion, decision)
    describe_promotion(ws, store, version, facts, metrics, result)
    return result


def _write(
    ws: Workspace, facts: Mapping[str, Any], version: "ModelVersion | None", champion: "ModelVersion | None",
    decision: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """data/promotion.json, which is returned; without a version where nothing was registered."""
    aliases = {CANDIDATE: version, CHAMPION: champion}
    result = {
        "format": FORMAT,
        "model": ws.registered_model,
        "version": int(version.version) if version else None,
        "digest": facts[MODEL],
        "data": facts["manifest"],
        "aliases": {alias: int(one.version) for alias, one in aliases.items() if one is not None},
        "decision": decision,
    }
    write_atomically(ws.promotion, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
    _report(result)
    return result


def _facts(ws: Workspace) -> dict[str, Any]:
    """What the package states of itself. Raises DigestError where its weights are others."""
    import yaml

    file = ws.package / "MLmodel"
    if not file.is_file():
        raise FormatError(f"{ws.package}: holds no packaged model. Run the package stage: `dvc repro package`.")
    metadata = yaml.safe_load(file.read_text()).get("metadata") or {}
    if METADATA not in metadata:
        raise FormatError(f"{ws.package}: not packaged by Shardline. Package again: `dvc repro --force package`.")
    facts = dict(metadata[METADATA])
    weights = ws.package / ARTIFACTS / "model.safetensors"
    if not weights.is_file():
        raise FormatError(f"{weights}: missing. Package again: `dvc repro --force package`.")
    if (found := digest_file(weights)) != facts[WEIGHTS]:
        raise DigestError(str(weights), facts[WEIGHTS], found, says=str(file))
    return facts


# -- registering ---------------------------------------------------------------------------------------------------


def _register(ws: Workspace, store: Store, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> "ModelVersion":
    """The version of this model and data, new or found again, with its tags brought up to date."""
    name = ws.registered_model
    tags = lineage_tags(ws) | {
        MODEL: facts[MODEL], WEIGHTS: facts[WEIGHTS], DATA: facts["manifest"], SPLIT: ws.params.evaluate.split,
        METRICS: _fitting(metrics, ws.params.promote.gate.metric),
    }  # fmt: skip
    if code := _code(facts):
        tags[OWN_CODE] = code
    if chosen := _chosen(ws):
        tags[CHOSEN] = json.dumps(chosen, sort_keys=True)
    tags = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
    with registry_errors(store):
        _create_registered_model(store, ws, facts)
        version = _same(store, name, facts)
        if version is None:
            return _create_version(ws, store, tags)
        for key, value in tags.items():
            if version.tags.get(key) != value:
                store.client.set_model_version_tag(name, version.version, key, value)
    return version


def _fitting(metrics: Mapping[str, float], judged: str) -> str:
    """The metrics as JSON: all of them, where MLflow takes a text so long; else without those of each class and the
    like, but with the `judged` one."""
    text = json.dumps(metrics, sort_keys=True)
    if len(text) <= LONGEST_TAG:
        return text
    return json.dumps({name: metrics[name] for name in metrics if "." not in name or name == judged}, sort_keys=True)


def _code(facts: Mapping[str, Any]) -> str | None:
    """Digest of the user's own code that the model was trained with, where it has any."""
    return digest_json(facts[OWN_CODE]) if facts.get(OWN_CODE) else None


def _chosen(ws: Workspace) -> dict[str, str]:
    """Key → digest of each metric of `evaluate.metrics`: its settings, and the user's own code behind it."""
    from pipelines.evaluation.metrics.names import metric_key

    digests = {}
    for entry in ws.params.evaluate.metrics:
        metric = Metric(name=entry) if isinstance(entry, str) else entry
        stated = metric.model_dump(exclude={"key"}) | {"code": code_behind(metric.name, ws)}
        digests[metric_key(metric)] = digest_json(stated)
    return digests


def _create_registered_model(store: Store, ws: Workspace, facts: Mapping[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    tags = {TASK: facts["task"], INPUTS: facts["inputs"], "recipe": ws.params.recipe}
    try:
        store.client.create_registered_model(ws.registered_model, tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        for key, value in tags.items():
            store.client.set_registered_model_tag(ws.registered_model, key, value)


def _same(store: Store, name: str, facts: Mapping[str, Any]) -> "ModelVersion | None":
    """The newest version with the same weights, configuration and data."""
    condition = f"name = '{name}' and tags.`{MODEL}` = '{facts[MODEL]}' and tags.`{DATA}` = '{facts['manifest']}'"
    found = store.client.search_model_versions(condition)
    return max(found, key=lambda version: int(version.version), default=None)


def _create_version(ws: Workspace, store: Store, tags: dict[str, str]) -> "ModelVersion":
    """A new version of the LoggedModel that `package` logged; logs it first where this store hasn't got it."""
    model_id, run = _logged_model(ws, store)
    client = store.client
    location = client.get_logged_model(model_id).artifact_location
    remote = store.uri.startswith(("http://", "https://"))
    version = client.create_model_version(
        ws.registered_model,
        f"models:/{model_id}" if remote else location,  # MLflow resolves models:/ by its global tracking URI
        run_id=run.id,
        tags=tags,
        description=f"From run {run.id}: {run.url}",
        model_id=model_id,
    )
    link = [{"name": version.name, "version": version.version}]
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(link)})
    return version


def _logged_model(ws: Workspace, store: Store) -> tuple[str, Run]:
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    described = Model.load(str(ws.package))
    run = open_run(ws, run_id=described.run_id)
    if run.store is None:
        raise TrackingError("MLflow stopped answering. Run the same command again (setting: MLFLOW_TRACKING_URI).")
    with run:
        if described.model_id:
            try:
                found = store.client.get_logged_model(described.model_id)
                if str(found.status) == "READY" and run.reopened:
                    return described.model_id, run
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                    raise
        model_id = log_package(ws, run, ws.package)
    if model_id is None:
        raise TrackingError("MLflow did not take the model (above). Run the same command again when it answers.")
    return model_id, run


# -- deciding ------------------------------------------------------------------------------------------------------


def _decide(
    ws: Workspace, store: Store, version: "ModelVersion", champion: "ModelVersion | None", facts: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """The decision as JSON: promoted, reason, conditions, and the champion that it was compared with."""
    if champion is None:
        return judge(ws.params.promote.gate, metrics, None).to_json() | {"champion": None}
    if champion.version == version.version:
        if recorded := champion.tags.get(DECISION):
            return dict(json.loads(recorded))
        reason = f"version {version.version} is champion already"
        return Decision(True, reason).to_json() | {"champion": None}
    number = int(champion.version)
    if champion.tags.get(WEIGHTS) == facts[WEIGHTS]:
        if champion.tags.get(OWN_CODE) == _code(facts):
            decision = Decision(False, f"the champion, version {number}, has the same weights and stays")
            return decision.to_json() | {"champion": {"version": number}}
        gate = ws.params.promote.gate
        measured = _recorded(ws, champion, facts["manifest"]).get(gate.metric)
        if measured == metrics[gate.metric] and judge(gate, metrics, None).promoted:  # a comment has changed, say
            reason = f"it has the weights and the {gate.metric} of the champion, version {number}, in today's code"
            return Decision(True, reason).to_json() | {"champion": {"version": number}}
    try:
        present = _champion_metrics(ws, store, champion, facts["manifest"])
    except TrackingError:
        raise
    except ShardlineError as error:
        decision = Decision(
            False,
            f"the champion, version {number}, cannot be measured on the present data ({error}). To replace it, move "
            "the alias in the MLflow UI; to start a new line of models, set promote.model",
        )
        return decision.to_json() | {"champion": {"version": number}}
    decision = judge(ws.params.promote.gate, metrics, present.metrics)
    return decision.to_json() | {"champion": {"version": number, "metrics": present.source}}


def _champion_metrics(ws: Workspace, store: Store, version: "ModelVersion", manifest: str) -> Champion:
    """The champion's metrics on the data version `manifest` and the present split: recorded, or measured now."""
    if metrics := _recorded(ws, version, manifest):
        return Champion(version, metrics, "recorded")
    say(f"promote: evaluating the champion, version {version.version}, on the present data.")
    with version_files(store, version) as folder:
        return Champion(version, evaluate_files(ws, folder / ARTIFACTS, own_of_champion(ws, version)), "re-evaluated")


def _recorded(ws: Workspace, version: "ModelVersion", manifest: str) -> dict[str, float]:
    """A version's metrics as its tags have them, where they are of this data and split and the gate's one was measured
    by the same metric; else {}."""
    metric, now, then = ws.params.promote.gate.metric, _chosen(ws), json.loads(version.tags.get(CHOSEN, "{}"))
    metrics: dict[str, float] = json.loads(version.tags.get(METRICS, "{}"))
    same = version.tags.get(DATA) == manifest and version.tags.get(SPLIT) == ws.params.evaluate.split
    same &= all(then.get(key, now[key]) == now[key] for key in metric.split(".") if key in now)
    return metrics if same and metric in metrics else {}


def evaluate_files(ws: Workspace, folder: Path, own: "Own") -> dict[str, float]:
    """Flat metrics of the model in `folder`, of Shardline's code or the user's `own`, on the workspace's shards. Raises
    ShardlineError where they don't fit."""

    module, config = load_model(folder, own)
    zone = ws.zone("shards")
    return numbers(evaluate_model(module, config, zone, zone.manifest(), ws.params))


def _report(result: Mapping[str, Any]) -> None:
    decision, name, version = result["decision"], result["model"], result["version"]
    if version is None:
        say(f"promote: {name} is not registered: {decision['reason']}.")
        return
    outcome = "is champion" if decision["promoted"] else "is candidate; the champion alias does not move"
    say(f"promote: {name} version {version} {outcome}: {decision['reason']}.")
