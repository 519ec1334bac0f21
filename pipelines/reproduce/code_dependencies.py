"""The files of a user's own code as dependencies in dvc.yaml, so that DVC sees when they change."""

import io
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.reproduce.dvc_process import outs
from pipelines.runtime.own_code import PIPELINE, STAGES, code_of
from pipelines.workspace import Workspace
from storage.atomic import write_atomically

_OURS = {stage for stages in STAGES.values() for stage in stages}  # others are a person's own


def depend_on_code(ws: Workspace) -> list[str]:
    """Bring the deps of the recipe's dvc.yaml up to date: files that a stage runs are added, Python files that are gone
    are taken out. Returns what was changed, in words."""
    file, yaml, code = ws.root / PIPELINE, _yaml(), code_of(ws)
    if not file.is_file():
        return []
    try:
        pipeline = yaml.load(file.read_text())
        stages = {name: stage for name, stage in pipeline["stages"].items() if isinstance(stage.get("cmd"), str)}
    except (YAMLError, KeyError, TypeError, AttributeError):  # DVC says what is wrong with it
        return []
    made = [Path(out) for stage in stages.values() for out in outs(stage)]
    changes = []
    for name, stage in stages.items():
        deps = stage.get("deps", [])
        listed = [dep for dep in deps if isinstance(dep, str)]
        for path in code.get(name, []):
            if not _lies_in(path, [*map(Path, listed), *made]):  # DVC reads nothing more where a stage's out is its dep
                stage.setdefault("deps", deps).append(path)
                changes.append(f"{name} depends on {path}")
        for path in listed if name in _OURS else []:
            if path.endswith(".py") and not _lies_in(path, made) and not (ws.root / path).exists():
                deps.remove(path)
                changes.append(f"{name} depends on {path} no more, which is gone")
    if changes:
        text = io.StringIO()
        yaml.dump(pipeline, text)
        write_atomically(file, text.getvalue().encode())
    return changes


def _lies_in(path: str, places: list[Path]) -> bool:
    return any(place in (Path(path), *Path(path).parents) for place in places)


def _yaml() -> YAML:
    """Keeps comments, quotes and the layout of Shardline's own dvc.yaml."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml
