"""The files of a node cache: their names, and which are there."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage.cache.node import place
from storage.digest import is_digest
from storage.errors import FormatError

SUFFIX, TEMPORARY = ".arrow", ".tmp"
_OURS = re.compile(r"([0-9a-f]{64})(\.arrow|\.tmp)")


class Files:
    """Those below the cache's `folder`, in the folder of its own that node_place.py speaks of."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / place.NAME
        self.objects = self.place / "objects"

    def make(self) -> None:
        """Make the folders, which may have been deleted. Raises FileExistsError where something else's lies there, and
        OSError."""
        place.make(self.place)
        self.objects.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """A shard's. Raises FormatError for what is no digest: it would lead anywhere."""
        if not is_digest(digest):
            raise FormatError(f"{digest!r:.80} is no digest, so no shard of the node cache {self.place} has that name.")
        return self.objects / f"{digest}{SUFFIX}"

    def temporary(self, digest: str) -> Path:
        """That of a shard which is being fetched."""
        return self.path(digest).with_suffix(TEMPORARY)

    def listed(self) -> Iterator[tuple[str, str, "os.DirEntry[str]"]]:
        """(digest, suffix, entry) of every file of ours. Raises OSError."""
        try:
            entries = list(os.scandir(self.objects))
        except FileNotFoundError:
            return
        for entry in entries:
            if (match := _OURS.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                yield match[1], match[2], entry

    def held(self) -> Iterator[tuple[str, os.stat_result]]:
        """(digest, facts) of every shard that is there. Raises OSError."""
        for digest, suffix, entry in self.listed():
            if suffix == SUFFIX:
                with suppress(FileNotFoundError):  # dropped meanwhile
                    yield digest, entry.stat()
