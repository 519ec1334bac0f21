"""Where a run comes from: the git commit, `dvc.lock`, the data versions, the Prefect flow run around it."""

import getpass
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from pipelines.params import FILENAME
from pipelines.runtime.own_code import PIPELINE, code_of, differ_in_code_alone
from pipelines.workspace import Workspace, recipes
from storage.digest import digest_file
from storage.lake import ZONES, Zone
from storage.manifest import Manifest
from storage.redact import mask

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST_LIMIT = 36  # characters of a dataset's digest that MLflow stores
#: What makes no difference to a model: what stages and DVC write, which changes within a `dvc repro`, and pages.
_WRITTEN = ("dvc.lock", "metrics/**", "plots/**", ".gitignore", ".dvc/**")
_NO_CODE = [f":(exclude,top,glob)**/{name}" for name in (*_WRITTEN, "*.md")]


def lineage_tags(ws: Workspace) -> dict[str, str]:
    """Tags that join a run to git, DVC, the data and Prefect. What is not there has no tag. About 20 ms."""
    tags = {"recipe": ws.params.recipe, "mlflow.source.name": "shardline", "mlflow.source.type": "LOCAL"}
    tags |= _user_tags() | _git_tags(ws) | data_tags(ws)
    lock = ws.root / "dvc.lock"
    if lock.is_file():
        tags["dvc.lock"] = digest_file(lock)
    environment = {
        "dvc.experiment": "DVC_EXP_NAME",
        "prefect.flow_run_id": "PREFECT__FLOW_RUN_ID",
        "prefect.flow_run_url": "SHARDLINE_FLOW_RUN_URL",
    }
    tags |= {tag: os.environ[name] for tag, name in environment.items() if os.environ.get(name)}
    return {tag: mask(value) for tag, value in tags.items()}


def data_tags(ws: Workspace) -> dict[str, str]:
    """`data.<zone>` → digest of its manifest, for the zones that are complete."""
    return {f"data.{zone}": ws.zone(zone).manifest().digest for zone in ZONES if ws.zone(zone).complete}


def _user_tags() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (OSError, KeyError):  # a container whose user has no name
        return {}


def _git_tags(ws: Workspace) -> dict[str, str]:
    commit = _git(ws, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = str(bool(uncommitted(ws) or unknown_to_git(ws))).lower()
    return {"git.commit": commit, "git.dirty": dirty, "mlflow.source.git.commit": commit}


def uncommitted(ws: Workspace) -> list[str]:
    """Tracked files of code and parameters that differ from the last commit; not what stages write, own code that was
    listed in dvc.yaml, pages, or other recipes'. None where there is no commit."""
    others = [folder for folder in recipes(ws.project).values() if folder not in (ws.root, ws.project)]
    if ws.root != ws.project:
        others += [ws.project / FILENAME, ws.project / PIPELINE]
    if _lists_code_alone(ws):
        others.append(ws.root / PIPELINE)
    aside = [f":(exclude,literal){os.path.relpath(other, ws.root)}" for other in others]
    names = _git(ws, "diff", "--name-only", "-z", "HEAD", "--", ":/", *_NO_CODE, *aside)
    if names is None and _git(ws, "rev-parse", "HEAD"):
        return ["files that git could not compare"]
    return names.strip("\0").split("\0") if names else []


def unknown_to_git(ws: Workspace) -> list[str]:
    """Files of the user's own code that a stage runs and git doesn't track, ignored or not; by their paths from the
    recipe's folder. None where there is no commit."""
    own = sorted({path for paths in code_of(ws).values() for path in paths})
    if not own or not _git(ws, "rev-parse", "HEAD"):
        return []
    tracked = set((_git(ws, "ls-files", "-z", "--recurse-submodules", "--", ":/") or "").split("\0"))
    root = ws.root.resolve()  # git's paths have no links in them
    return [path for path in own if os.path.relpath((ws.root / path).resolve(), root) not in tracked]


def _lists_code_alone(ws: Workspace) -> bool:
    """Whether all that is new in the recipe's dvc.yaml is own code that a job listed in it, as it begins."""
    committed, file = _git(ws, "show", f"HEAD:./{PIPELINE}"), ws.root / PIPELINE
    return committed is not None and file.is_file() and differ_in_code_alone(committed, file.read_text())


def _git(ws: Workspace, *arguments: str) -> str | None:
    """Output of a git command in the recipe's folder; None when there is no git, repository or commit."""
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=ws.root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def dataset_input(name: str, manifest: Manifest, zone: Zone, context: str) -> "DatasetInput":
    """MLflow's record of a dataset: name, where its objects lie, the manifest's digest, schema and profile.

    MLflow keeps 36 characters of a digest, so the whole one is in the tag `manifest`.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits = {split: _profile(manifest, split) for split in manifest.splits}
    dataset = Dataset(
        name=name,
        digest=manifest.digest[:DIGEST_LIMIT],
        source_type="local" if zone.root is not None else zone.describe().split("://")[0],
        source=json.dumps({"uri": zone.describe().rstrip("/")}),
        schema=_schema(manifest.header.get("spec", {})),
        profile=json.dumps(splits.get(context, {}) | {"splits": splits}),
    )
    tags = {"mlflow.data.context": context, "manifest": manifest.digest}
    return DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])


def _profile(manifest: Manifest, split: str) -> dict[str, int]:
    table = manifest.select(split)
    sizes = {"shards": table.num_rows}
    for column in ("rows", "bytes", "tokens"):
        if column in table.column_names and table[column].null_count < table.num_rows:
            sizes[column] = sum(value or 0 for value in table[column].to_pylist())
    return sizes


def _schema(spec: dict[str, Any]) -> str:
    """The spec of the data as MLflow's tensor schema, which its UI shows as a table."""

    def tensor(name: str, dtype: str, shape: list[int]) -> dict[str, Any]:
        return {"type": "tensor", "name": name, "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}

    if "vocab_size" in spec:
        columns = [tensor("tokens", str(spec.get("dtype", "uint16")), [])]
    else:
        columns = [tensor(name, one["dtype"], one["shape"]) for name, one in spec.get("inputs", {}).items()]
        target = spec.get("target")
        columns += [tensor(target["name"], target["dtype"], [])] if target else []
    return json.dumps({"mlflow_tensorspec": {"features": json.dumps(columns), "targets": None}})
