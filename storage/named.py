"""Files with names of their own, beside a zone's objects (which are named by their digests)."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.atomic import storage_errors, write_atomically
from storage.lake import Zone
from storage.objects.retries import readable


@dataclass(frozen=True)
class NamedFiles:
    """All files below the place of `zone`, wherever that is. A path is relative to it. Raises LakeError."""

    zone: Zone

    def paths(self) -> dict[str, int]:
        """Path → bytes of every file at any depth, objects among them, temporary files not."""
        root = self.zone.root
        if root is None:
            return self.zone.reader.paths()
        with readable(str(root)):
            files = [file for file in _files(root) if not file.name.endswith(".tmp")]
            return {file.relative_to(root).as_posix(): file.stat().st_size for file in files}

    def write(self, path: str, data: bytes) -> None:
        """Write a file in whole: nobody ever sees a part of it, and a crash leaves the old one or the new one."""
        root = self.zone.root
        if root is None:
            self.zone.reader.put(path, data)
        else:
            write_atomically(root / path, data)

    def read(self, path: str) -> bytes:
        """Its bytes. Raises FileNotFoundError when it isn't there."""
        root = self.zone.root
        if root is not None:
            with readable(str(root / path), missing=False):
                return (root / path).read_bytes()
        data = bytearray(self.zone.reader.size(path))
        self.zone.reader.read_into(path, 0, data)
        return bytes(data)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there, and its folder, if it is empty then."""
        root = self.zone.root
        if root is None:
            self.zone.reader.delete(path)
            return
        with storage_errors(root / path):
            (root / path).unlink(missing_ok=True)
        if (parent := (root / path).parent) != root:
            with suppress(OSError):  # it isn't empty
                parent.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    """Those at any depth; none where there is no such folder. Raises OSError for one that cannot be read, which `rglob`
    passes over."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (path for name in names if (path := Path(parent, name)).is_file())
