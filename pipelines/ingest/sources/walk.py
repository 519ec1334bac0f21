"""Local globs: the files below a folder. Links are followed, but not in a circle, and each folder by a few of them."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsspec.utils import glob_translate

from storage.errors import SourceError

_WAYS = 16  # links by which one folder may be reached

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Folder:
    """A folder on the way: its path; `name` below the base, with a slash at the end unless it is the base; how deep it
    lies; the real folders in which the links lie that led there; where the last of these leads, if out of the base."""

    path: str
    name: str = ""
    depth: int = 0
    around: tuple[str, ...] = ()
    outside: str | None = None


def walk(base: str, pattern: str, excluded: Callable[[str], bool]) -> Files:
    """Path → {type, size} of the files below `base` whose names match. Folders of which `excluded` says so (by their
    names, with a slash at the end) aren't entered: a site-packages below may hold 100,000 files.

    A link to nothing counts as a file, and says where it `leads`; a file that links lead to outside of `base` says
    where it is, `outside`. Raises SourceError where links lead to one folder by many ways.
    """
    wanted, root = re.compile(glob_translate(pattern)), os.path.realpath(base)
    deepest = math.inf if "**" in pattern else pattern.count("/")
    found: Files = {}
    ways = Counter[str]()
    waiting = [_Folder(base)]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder.path) as listed:
            entries = list(listed)
        for entry in entries:
            name = f"{folder.name}{entry.name}"
            if _is_folder(entry):
                if folder.depth < deepest and not excluded(f"{name}/"):
                    waiting += _entered(folder, entry, root, ways)
            elif wanted.match(name) and (info := _info(folder, entry, root)):
                found[f"{folder.path.rstrip('/')}/{entry.name}"] = info
    return found


def _entered(folder: _Folder, entry: os.DirEntry[str], root: str, ways: Counter[str]) -> list[_Folder]:
    """The folder that `entry` is; none where a link leads back."""
    path, name, depth = f"{folder.path.rstrip('/')}/{entry.name}", f"{folder.name}{entry.name}/", folder.depth + 1
    if not entry.is_symlink():
        return [_Folder(path, name, depth, folder.around, folder.outside)]
    real, around = os.path.realpath(path), (*folder.around, os.path.realpath(folder.path))
    if any(_is_in(place, real) for place in around):
        return []
    ways[real] += 1
    if ways[real] > _WAYS:
        raise SourceError(
            f"ingest.sources: more than {_WAYS} links below {root} lead to {real}, the last of them {name!r}: its "
            "files would be read as many times. Leave links out with ingest.exclude."
        )
    return [_Folder(path, name, depth, around, None if _is_in(real, root) else real)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _info(folder: _Folder, entry: os.DirEntry[str], root: str) -> dict[str, Any] | None:
    """None: neither a file nor a link."""
    try:
        if entry.is_file():
            info: dict[str, Any] = {"type": "file", "size": entry.stat().st_size}
            real = os.path.realpath(entry.path) if entry.is_symlink() else None
            outside = folder.outside if real is None else None if _is_in(real, root) else real
            return info if outside is None else {**info, "outside": outside}
    except OSError:
        pass
    if entry.is_symlink() and not os.path.exists(entry.path):
        return {"type": "file", "size": 0, "leads": os.readlink(entry.path)}
    return None


def _is_in(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; both are real."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
