"""A recipe's own Python files as dependencies of the stages that run them, so that DVC sees when they change.

The files are found by reading: from the import paths of params.yaml along the `import` statements, within the recipe's
folder and the project. Installed packages and Shardline's own modules are none of them, and a module that is imported
by a computed name isn't found.
"""

import ast
import io
import os
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.params import Params
from pipelines.params.data import READERS
from pipelines.reproduce.dvc_process import outs
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.digest import digest_file

PIPELINE = "dvc.yaml"
_SHARDLINE = {"flows", "pipelines", "storage"}
_APART = {".venv", "site-packages", "dist-packages"}  # folders of installed packages

#: What runs the code of each setting. A model's code is in the package, too.
STAGES = {
    "curate.reader": ("curate",),
    "model.name": ("train", "evaluate", "package"),
    "train.loss": ("train",),
    "train.entrypoint": ("train",),
    "evaluate.metrics": ("evaluate",),
    "promote.trusted": ("promote",),
}


def import_paths(params: Params) -> Iterator[tuple[str, str]]:
    """Settings that are import paths, package.module:name, or a script.py."""
    named = [("curate.reader", READERS.name_of(params.curate.reader))]
    named += [("model.name", params.model.name), ("train.loss", params.train.loss)]
    named.append(("train.entrypoint", params.train.entrypoint or ""))
    metrics = params.evaluate.metrics
    named += [("evaluate.metrics", metric if isinstance(metric, str) else metric.name) for metric in metrics]
    named += [("promote.trusted", path) for path in params.promote.trusted]
    yield from ((setting, path) for setting, path in named if ":" in path or path.endswith(".py"))


def code_of(ws: Workspace) -> dict[str, list[str]]:
    """Stage → the files of the user's own that it runs, by their paths from the recipe's folder."""
    invalidate_caches()  # a file may be a moment old
    found: dict[str, set[str]] = {}
    for setting, path in import_paths(ws.params):
        module = path.partition(":")[0]
        begin = [ws.root / path] if path.endswith(".py") else list(_files(module, ws))
        files = {os.path.relpath(file, ws.root) for file in _reached(begin, ws)}
        for stage in STAGES[setting]:
            found.setdefault(stage, set()).update(files)
    return {stage: sorted(files) for stage, files in found.items()}


def digests(ws: Workspace, stage: str) -> list[str]:
    """Digests of the user's own files that `stage` runs, in order; wherever they lie."""
    return sorted(digest_file(ws.root / path) for path in code_of(ws).get(stage, []))


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
        for path in listed if name in code else []:
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


def differ_in_code_alone(one: str, other: str) -> bool:
    """Whether two texts of a dvc.yaml are the same but for Python files that stages depend on: what `depend_on_code`
    writes changes no result."""
    try:
        return bool(_without_code(one) == _without_code(other))
    except (YAMLError, KeyError, TypeError, AttributeError):
        return False


def _without_code(text: str) -> Any:
    pipeline = YAML(typ="safe").load(text)
    for stage in pipeline["stages"].values():
        stage["deps"] = [dep for dep in stage.get("deps", []) if not str(dep).endswith(".py")]
    return pipeline


def _yaml() -> YAML:
    """Keeps comments, quotes and the layout of Shardline's own dvc.yaml."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _reached(begin: list[Path], ws: Workspace) -> set[Path]:
    """`begin` and what they import, directly or not."""
    seen: set[Path] = set()
    waiting = [file for file in begin if file.is_file()]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += [found for module in _imports(file, ws) for found in _files(module, ws)]
    return seen


def _imports(file: Path, ws: Workspace) -> Iterator[str]:
    """Names of modules that a file imports, and of what it imports from them, which may be modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # its stage says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = _package(file, node.level) if node.level else ""
            module = ".".join(filter(None, [package, node.module or ""]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _package(file: Path, level: int) -> str:
    """The package that a relative import with `level` dots starts from."""
    folder = file.parent
    parts: list[str] = []
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts[: len(parts) - level + 1])


def _files(module: str, ws: Workspace) -> Iterator[Path]:
    """The files of the user's own that importing `module` runs: its packages' __init__.py and itself."""
    top, *rest = module.split(".")
    if not top or top in _SHARDLINE or top in sys.stdlib_module_names:
        return
    places: list[str] | None = [str(ws.root), *sys.path]
    for name in (top, *rest):
        spec = PathFinder.find_spec(name, places)
        if spec is None:  # a function or class, no module
            return
        if spec.origin and _is_own(Path(spec.origin), ws):
            yield Path(spec.origin)
        if spec.submodule_search_locations is None:
            return
        places = list(spec.submodule_search_locations)


def _is_own(file: Path, ws: Workspace) -> bool:
    inside = file.is_relative_to(ws.root) or file.is_relative_to(ws.project)
    return inside and file.suffix == ".py" and not _APART & set(file.parts)
