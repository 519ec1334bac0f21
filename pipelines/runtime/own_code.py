"""A recipe's own Python files as dependencies of the stages that run them, so that DVC sees when they change.

The files are found by reading: from the import paths of params.yaml along the `import` statements, within the recipe's
folder and the project. Installed packages and Shardline's own modules are none of them, and a module that is imported
by a computed name isn't found.
"""

import ast
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
from pipelines.workspace import Workspace
from storage.digest import digest_file

PIPELINE = "dvc.yaml"
_SHARDLINE = {"flows", "pipelines", "storage"}
_APART = {".venv", "site-packages", "dist-packages"}  # folders of installed packages

#: What runs the code of each setting. A model's code is in the package, too.
STAGES = {
    "model.name": ("train", "evaluate", "package"),
    "train.loss": ("train",),
    "train.entrypoint": ("train",),
    "evaluate.metrics": ("evaluate",),
    "promote.trusted": ("promote",),
}


def import_paths(params: Params) -> Iterator[tuple[str, str]]:
    """Settings that are import paths, package.module:name, or a script.py."""
    named = [("model.name", params.model.name), ("train.loss", params.train.loss)]
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
