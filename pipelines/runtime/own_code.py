"""A recipe's own Python files as dependencies of the stages that run them, so that DVC sees when they change; and those
of a model as part of what was trained, so that its weights don't run through others unseen (`own`).

The files are found by reading: from the import paths of params.yaml along the `import` statements, within the recipe's
folder and the project. Installed packages and Shardline's own modules are none of them, and a module that is imported
by a computed name isn't found.
"""

import ast
import io
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.params import Params
from pipelines.reproduce.dvc_process import outs
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.digest import digest_file
from storage.errors import ParamsError

if TYPE_CHECKING:
    from pipelines.models.importing import Own

PIPELINE = "dvc.yaml"
_SHARDLINE = {"flows", "pipelines", "storage"}
_APART = {".venv", "site-packages", "dist-packages"}  # folders of installed packages

#: What to do where data/model and its code don't belong together.
AGAIN = (
    "Go back to that code, or train again: `shardline repro`, or `dvc repro --force train` where a file changed while "
    "it was trained and nothing is stale."
)

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
    found: dict[str, set[str]] = {}
    for setting, path in import_paths(ws.params):
        files = _behind(path, ws)
        for stage in STAGES[setting]:
            found.setdefault(stage, set()).update(files)
    return {stage: sorted(files) for stage, files in found.items()}


def _behind(path: str, ws: Workspace) -> set[str]:
    """The files of the user's own that an import path or a script.py leads to, by their paths from the recipe's
    folder."""
    invalidate_caches()  # a file may be a moment old
    begin = [ws.root / path] if path.endswith(".py") else list(_files(path.partition(":")[0], ws))
    return {os.path.relpath(file, ws.root) for file in _reached(begin, ws)}


def digests(ws: Workspace, stage: str) -> list[str]:
    """Digests of the user's own files that `stage` runs, in order; wherever they lie."""
    return sorted(digest_file(ws.root / path) for path in code_of(ws).get(stage, []))


def code_behind(path: str, ws: Workspace) -> dict[str, str]:
    """Path from the recipe's folder → digest, of each file of the user's own that an import path leads to; {} for a
    name of Shardline's own."""
    return {file: digest_file(ws.root / file) for file in sorted(_behind(path, ws))} if ":" in path else {}


def changed_since(ws: Workspace, model: str, trained: Mapping[str, str]) -> list[str]:
    """What differs, in words, between the code of `model` now and the files `trained`, as `code_behind` gave them."""
    now = code_behind(model, ws)
    words = {file: "changed" if file in now else "gone" for file, digest in trained.items() if now.get(file) != digest}
    words |= {file: "new" for file in now if file not in trained}
    return [f"{file} ({words[file]})" for file in sorted(words)]


def own(ws: Workspace, whose: str, hint: str, *, changed: bool = False) -> "Own":
    """The code that the recipe names, for the weights of `whose`: it is refused with `hint` (ParamsError) where it
    isn't what they were trained with, or only told of with `changed`. So it is for weights from before that was
    recorded."""
    from pipelines.models.importing import Own

    def compare(model: str, trained: Mapping[str, str]) -> None:
        different = changed_since(ws, model, trained)
        if different and not trained:
            print(
                f"{whose} does not say which code of your own it was trained with; it is run with today's.",
                file=sys.stderr,
            )
        elif different:
            told = f"{whose} was trained with other code than today's: {', '.join(different)}."
            if not changed:
                raise ParamsError(f"{told} The same weights would give other answers than those measured. {hint}")
            print(f"{told} It is run with today's.", file=sys.stderr)

    return Own.of(ws.params, ws.root, ws.project, compare=compare)


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
    places: list[str] | None = [str(ws.root), *sys.path, str(ws.project)]  # the last: if PYTHONPATH had it in training
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
