"""Where a node cache lies: a folder that is known to be a cache's, and is no place of anything else's.

What a node cache deletes it must have written, and a name is no proof: a zone's objects are named by their digests too.
So its files lie in a folder of its own, `FOLDER/shardline`, which it has made and marked by a CACHEDIR.TAG
(https://bford.info/cachedir; backups leave such folders out). One that isn't marked, and isn't empty, is left alone.
"""

import errno
from collections.abc import Iterable
from pathlib import Path

from storage.atomic import write_atomically
from storage.errors import ParamsError

NAME = "shardline"
TAG = "CACHEDIR.TAG"
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"
_TEXT = _SIGNATURE + b"# Shards that Shardline fetched once and can fetch again. It may be deleted.\n"


def make(place: Path) -> None:
    """Make the cache's own folder, unless it is there. Raises FileExistsError where something else is, and OSError."""
    if is_marked(place):
        return
    place.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in place.iterdir() if not path.name.startswith(f".{TAG}.")]
    if others and TAG not in others:  # else another process has just made it
        raise FileExistsError(
            errno.EEXIST, f"it holds {others[0]!r} and no {TAG}, so it is no cache's, and is left alone", str(place)
        )
    write_atomically(place / TAG, _TEXT)


def is_marked(place: Path) -> bool:
    """Whether a node cache has made the folder. Raises OSError where that can't be told."""
    try:
        with (place / TAG).open("rb") as tag:
            return tag.read(len(_SIGNATURE)) == _SIGNATURE
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_apart(folder: Path, places: Iterable[Path]) -> None:
    """Raise ParamsError where a node cache's `folder` is, contains or lies in one of `places`, which are zones'."""
    cache = folder.resolve()
    for place in places:
        zone = place.resolve()
        how = (
            "is" if cache == zone
            else "contains" if cache in zone.parents
            else "lies in" if zone in cache.parents
            else None
        )  # fmt: skip
        if how:
            raise ParamsError(
                f"cache.node.folder: {folder} {how} {place}, where a zone's objects lie. Name a folder of the "
                "cache's own, outside of it."
            )
