"""A recipe's own Python files: which ones each setting leads to, their digests, and which of them have changed.

The files are found by reading: from the import paths of params.yaml along the `import` statements, within the recipe's
folder and the project. Installed packages and Shardline's own modules are none of them, and a module that is imported
by a computed name isn't found.
"""

import ast
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.params import Params
from pipelines.params.data import READERS
from pipelines.workspace import Workspace
from storage.digest import digest_file
from storage.errors import ParamsError

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
    "ingest.sources": ("ingest",),
    "curate.reader": ("curate",),
    "model.name": ("train", "evaluate", "package"),
    "train.loss": ("train",),
    "train.entrypoint": ("train",),
    "evaluate.metrics": ("evaluate",),
    "promote.trusted": ("promote",),
}


def import_paths(params: Params) -> Iterator[tuple[str, str]]:
    """Settings that are import paths, package.module:name, or a script.py."""
    named = [("ingest.sources", source.name) for _, source in params.ingest.each if not isinstance(source, str)]
    named.append(("curate.reader", READERS.name_of(params.curate.reader)))
    named += [("model.name", params.model.name), ("train.loss", params.train.loss)]
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
    return sorted(_digest(path, ws) for path in code_of(ws).get(stage, []))


def code_behind(path: str, ws: Workspace) -> dict[str, str]:
    """Path from the recipe's folder → digest, of each file of the user's own that an import path leads to; {} for a
    name of Shardline's own."""
    return {file: _digest(file, ws) for file in sorted(_behind(path, ws))} if ":" in path else {}


def _digest(path: str, ws: Workspace) -> str:
    """Of a file by its path from the recipe's folder, in which `..` is meant literally: that folder may be a link, or
    not be there yet."""
    return digest_file(Path(os.path.normpath(ws.root / path)))


def changed_since(ws: Workspace, model: str, trained: Mapping[str, str]) -> list[str]:
    """What differs, in words, between the code of `model` now and the files `trained`, as `code_behind` gave them."""
    now = code_behind(model, ws)
    words = {file: "changed" if file in now else "gone" for file, digest in trained.items() if now.get(file) != digest}
    words |= {file: "new" for file in now if file not in trained}
    return [f"{file} ({words[file]})" for file in sorted(words)]


def comparison(
    ws: Workspace, whose: str, hint: str, *, changed: bool = False
) -> Callable[[str, Mapping[str, str]], None]:
    """For `models.Own.of(…, compare=…)`: takes a model's import path and the files that the weights of `whose` were
    trained with. Raises ParamsError with `hint` where they are others by now; with `changed` it only tells so on
    stderr, as it does of weights from before that was recorded."""

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

    return compare


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
