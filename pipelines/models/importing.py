"""A user's own code by its import path: whose may run, where it is looked for, and what a person reads when that fails.

Only what params.yaml names is imported (docs/security.md). Files that hold results or data, such as a model's
config.json, may repeat such a name; they cannot bring in another one.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pipelines.params import FILENAME, Params, suggestion
from storage.errors import ParamsError


@dataclass(frozen=True)
class Own:
    """The user's code that a file may name: import paths, looked for in `folders` (none: the current one), then among
    the installed packages. `compare` is called with a model's import path and the files that it was trained with, path
    → digest, and raises ParamsError where its code has become another."""

    paths: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    compare: Callable[[str, Mapping[str, str]], None] | None = None

    @classmethod
    def of(
        cls, params: Params, *folders: Path, compare: Callable[[str, Mapping[str, str]], None] | None = None
    ) -> "Own":
        """What a recipe names: its model, and the earlier ones that it trusts."""
        return cls((params.model.name, *params.promote.trusted), folders, compare)

    def check(self, name: str, where: Path, trained: Mapping[str, str]) -> None:
        """Raises ParamsError when the file `where` names a model that is neither Shardline's own nor one of these, or
        one whose code isn't the files `trained` any more."""
        if ":" not in name:
            return
        if name in self.paths:
            if self.compare is not None:
                self.compare(name, trained)
            return
        named = [path for path in self.paths if ":" in path]
        raise ParamsError(
            f"{where} names the model {name!r}, which was not imported: code runs only where params.yaml names it, in "
            f"model.name or promote.trusted ({', '.join(named) or 'no code of your own there'}). If it is your own "
            "code, name it there; if not, find out who wrote that file."
        )


NOBODY = Own()


def import_named(path: str, setting: str, folders: Sequence[Path] = ()) -> Any:
    """What `path`, package.module:name, names; looked for in `folders` (none: the current one), then among the
    installed packages.

    Raises ParamsError that begins with the parameter `setting`, before anything runs for a file below a recipe's data/.
    """
    module_name, _, name = path.partition(":")
    folders = tuple(folders) or (Path.cwd(),)
    found_at = _source_of(module_name, folders)
    if found_at is not None:
        refuse_data(found_at, f"{setting}={path!r}", folders)
    try:
        with importable(*folders):
            module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "\0")
        hint = (
            f"Looked in {', '.join(map(str, folders))} and the installed packages; check the spelling, or where you "
            "run shardline."
            if missing
            else f"The module was found, but running it failed; try `python -c 'import {module_name}'`."
        )
        raise ParamsError(f"{setting}={path!r} does not import: {type(error).__name__}: {error}. {hint}") from error
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ParamsError(f"{setting}={path!r}: {module_name} has no {name!r}{suggestion(name, own)}")
    return found


def refuse_data(file: Path, what: str, folders: Sequence[Path]) -> None:
    """Raise ParamsError for a file of code that lies below the data/ of a recipe (inside `folders`, where it is in one
    of these), by its path or by what that links to: whoever can write data there could write code."""
    for place in (Path(os.path.abspath(file)), file.resolve()):
        for parent in place.parents:
            if parent in folders:
                break
            if parent.name == "data" and (parent.parent / FILENAME).is_file():
                raise ParamsError(
                    f"{what}: {file} lies in {parent}, which holds data and models. Nothing is imported from there: "
                    "move the code beside params.yaml."
                )


def refuse_loaded(code: Path) -> None:
    """Raise ParamsError where a module of the user's own in a package's folder `code` is loaded from a file that says
    something else: Python would run that one again."""
    for file in sorted(code.rglob("*.py")):
        parts = file.relative_to(code).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        loaded = Path(getattr(sys.modules.get(name), "__file__", None) or file)
        if parts[0] not in ("pipelines", "storage") and loaded.is_file() and loaded.read_bytes() != file.read_bytes():
            raise ParamsError(
                f"The module {name!r} is loaded from {loaded}, and this package has another one, {file}: its weights "
                "would run through the first. Load each version in a process of its own."
            )


def _source_of(module: str, folders: Sequence[Path]) -> Path | None:
    """The file or folder of a module, found without running any of its packages; None where Python's path hasn't it."""
    places: list[str] = [*map(str, folders), *sys.path]
    file = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
        file = spec.origin or next(iter(places), None)
    return Path(file) if file else None


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Inside, modules of these folders come first."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)
