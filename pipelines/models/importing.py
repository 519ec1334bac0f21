"""A user's own code by its import path, and what a person reads when that fails."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.params import suggestion
from storage.errors import ParamsError


def import_named(path: str, setting: str) -> Any:
    """What `path`, package.module:name, names; looked for in the current folder, then among the installed packages.

    Raises ParamsError that begins with the parameter `setting`.
    """
    module_name, _, name = path.partition(":")
    try:
        with current_folder_importable():
            module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "\0")
        hint = (
            f"Looked in {os.getcwd()} and the installed packages; check the spelling, or where you run shardline."
            if missing
            else f"The module was found, but running it failed; try `python -c 'import {module_name}'`."
        )
        raise ParamsError(f"{setting}={path!r} does not import: {type(error).__name__}: {error}. {hint}") from error
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ParamsError(f"{setting}={path!r}: {module_name} has no {name!r}{suggestion(name, own)}")
    return found


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Inside, modules of the current folder come first."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
