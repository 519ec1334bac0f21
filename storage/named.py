"""Files with names of their own, beside a zone's objects (which are named by their digests)."""

from contextlib import suppress
from dataclasses import dataclass

from storage.atomic import storage_errors, write_atomically
from storage.lake import Zone


@dataclass(frozen=True)
class NamedFiles:
    """All files below the place of `zone`, wherever that is. A path is relative to it. Raises LakeError."""

    zone: Zone

    def paths(self) -> dict[str, int]:
        """Path → bytes of every file at any depth, objects among them, temporary files not."""
        root = self.zone.root
        if root is None:
            return self.zone.reader.paths()
        files = [file for file in root.rglob("*") if file.is_file() and not file.name.endswith(".tmp")]
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
