"""The lake: where the zones lie. A zone is a local folder with the manifest, and objects there or at a remote URL.

Objects are content-addressed (`objects/<digest><suffix>`) and immutable, so a write is idempotent, equal bytes are
stored once, and a reader needs no lock.
"""

import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from blake3 import blake3
from fsspec.core import url_to_fs
from typing_extensions import Buffer

from storage.atomic import atomic_path, storage_errors, sync_folder
from storage.digest import digest_bytes, digest_file
from storage.errors import DigestError, LakeError
from storage.manifest import FILENAME, Manifest
from storage.remote import TIMEOUT, RangeReader

ZONES = ("raw", "curated", "shards")
OBJECTS = "objects"
_CHUNK = 4 << 20  # bytes copied at a time


@dataclass(frozen=True)
class StoredObject:
    """What `Zone.publish` wrote: path relative to the zone, BLAKE3 digest, size in bytes."""

    path: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Zone:
    """One zone. `folder` (local, a DVC out) holds the manifest; objects are beside it, or below `url` when given.

    `options` go to the fsspec file system of `url` (endpoint, credentials by name). The object is cheap to pickle; file
    systems are made inside each process, since fsspec's are not fork-safe.
    """

    folder: Path
    url: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    timeout: float = TIMEOUT  # seconds that the lake may be without progress

    @cached_property
    def _remote(self) -> tuple[fsspec.AbstractFileSystem, str]:
        assert self.url is not None
        try:
            fs, root = url_to_fs(self.url, **dict(self.options))
        except (ImportError, ValueError) as error:
            raise LakeError(
                f"lake.url={self.url!r} cannot be opened: {error}. Check the scheme, or install its fsspec driver."
            ) from error
        return fs, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "url": self.url, "options": self.options, "timeout": self.timeout}

    @property
    def reader(self) -> RangeReader:
        """Reads ranges of the objects, wherever they lie. One a process and place; threads share it."""
        url = str(self.root.resolve()) if self.root is not None else str(self.url)
        return _reader(url, self.options if self.root is None else (), self.timeout)

    @cached_property
    def root(self) -> Path | None:
        """The local folder above `objects/`, or None where the objects are remote."""
        if self.url is None:
            return self.folder
        local = "://" not in self.url or self.url.startswith(("file://", "local://"))
        return Path(self.url.split("://", 1)[-1]) if local else None

    def local_path(self, path: str) -> Path | None:
        """The file of object `path` where objects are local (so that it can be mapped), else None."""
        return self.root / path if self.root is not None else None

    def describe(self, path: str = "") -> str:
        """A name for object `path` that a person can find."""
        return str(self.root / path) if self.root is not None else f"{self.url}/{path}"

    # -- objects -------------------------------------------------------------------------------------------------

    def publish(self, data: Buffer, suffix: str) -> StoredObject:
        """Store `data`; nothing is written when its object is there already. Atomic and durable."""
        view = memoryview(data).cast("B")
        stored = StoredObject(path="", digest=digest_bytes(view), bytes=view.nbytes)
        stored = StoredObject(f"{OBJECTS}/{stored.digest}{suffix}", stored.digest, stored.bytes)
        if self.exists(stored.path, stored.bytes):
            return stored
        if self.root is not None:
            with atomic_path(self.root / stored.path, durable_name=False) as temporary:
                temporary.write_bytes(view)
        else:
            with _remote_errors(self.describe(stored.path)):
                fs, root = self._remote
                fs.pipe_file(f"{root}/{stored.path}", bytes(view))
        return stored

    def publish_from(self, fs: fsspec.AbstractFileSystem, path: str, suffix: str) -> StoredObject:
        """Copy file `path` of `fs` into the zone in one pass and bounded memory (4 MiB), digesting as it goes."""
        spool_folder = self.root / OBJECTS if self.root is not None else Path(tempfile.gettempdir())
        hasher, size = blake3(), 0
        with storage_errors(spool_folder):
            spool_folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".incoming.", suffix=".tmp", dir=spool_folder)
        spool = Path(name)
        try:
            with storage_errors(spool), os.fdopen(handle, "wb") as target, fs.open(path, "rb") as source:
                while chunk := source.read(_CHUNK):
                    hasher.update(chunk)
                    target.write(chunk)
                    size += len(chunk)
                target.flush()
                os.fsync(target.fileno())
            stored = StoredObject(f"{OBJECTS}/{hasher.hexdigest()}{suffix}", hasher.hexdigest(), size)
            self._adopt(spool, stored)
        finally:
            spool.unlink(missing_ok=True)
        return stored

    def _adopt(self, spool: Path, stored: StoredObject) -> None:
        """Move the synced local file `spool` to its place in the zone."""
        if self.exists(stored.path, stored.bytes):
            return
        if self.root is not None:
            spool.chmod(0o644)
            spool.replace(self.root / stored.path)
            return
        with _remote_errors(self.describe(stored.path)):
            fs, root = self._remote
            fs.put_file(str(spool), f"{root}/{stored.path}")

    def exists(self, path: str, size: int) -> bool:
        """Whether object `path` is there with `size` bytes."""
        if self.root is not None:
            file = self.root / path
            return file.is_file() and file.stat().st_size == size
        with _remote_errors(self.describe(path)):
            fs, root = self._remote
            try:
                return int(fs.info(f"{root}/{path}")["size"]) == size
            except FileNotFoundError:
                return False

    def sizes(self) -> dict[str, int]:
        """Path → bytes of every object that is there, by one listing."""
        if self.root is not None:
            folder = self.root / OBJECTS
            entries = list(os.scandir(folder)) if folder.is_dir() else []
            return {f"{OBJECTS}/{entry.name}": entry.stat().st_size for entry in entries}
        with _remote_errors(self.describe(OBJECTS)):
            fs, root = self._remote
            try:
                found = fs.find(f"{root}/{OBJECTS}", detail=True)
            except FileNotFoundError:
                return {}
            return {f"{OBJECTS}/{path.rsplit('/', 1)[-1]}": int(info["size"]) for path, info in found.items()}

    def read(self, path: str, digest: str | None = None) -> bytes:
        """The bytes of object `path`, checked against `digest`; a mismatch is read once more, then DigestError."""
        found = ""
        for _ in range(2):
            data = self._read(path)
            if digest is None or (found := digest_bytes(data)) == digest:
                return data
        raise DigestError(self.describe(path), str(digest), found)

    def _read(self, path: str) -> bytes:
        try:
            if self.root is not None:
                return (self.root / path).read_bytes()
            with _remote_errors(self.describe(path)):
                fs, root = self._remote
                return bytes(fs.cat_file(f"{root}/{path}"))
        except FileNotFoundError as error:
            raise LakeError(
                f"{self.describe(path)}: an object that the manifest names is missing. "
                "Restore it with `dvc pull` (or `dvc checkout`), or delete the manifest and run the stage again."
            ) from error

    def verify(self, path: str, digest: str) -> None:
        """Check object `path` against `digest`; raises DigestError, or LakeError when it is missing."""
        file = self.local_path(path)
        if file is None or not file.is_file():
            self.read(path, digest)
        elif (found := digest_file(file)) != digest:
            raise DigestError(self.describe(path), digest, found)

    # -- manifest ------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether a manifest is there: the zone holds a whole version."""
        return (self.folder / FILENAME).is_file()

    def manifest(self) -> Manifest:
        return Manifest.load(self.folder)

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest, after making the objects' names durable; then drop what it does not name."""
        if self.root is not None and (self.root / OBJECTS).is_dir():
            sync_folder(self.root / OBJECTS)
        manifest.save(self.folder)
        self.sweep(manifest)
        return manifest

    def sweep(self, manifest: Manifest) -> int:
        """Remove objects and temporary files in the DVC out that `manifest` does not name (DVC's cache keeps the
        versions that were committed); elsewhere they stay, since other revisions may name them. Returns how many."""
        folder = self.folder / OBJECTS
        if self.url is not None or not folder.is_dir():
            return 0
        named = set(manifest.table["path"].to_pylist())
        stale = [entry for entry in os.scandir(folder) if f"{OBJECTS}/{entry.name}" not in named]
        for entry in stale:
            Path(entry.path).unlink(missing_ok=True)
        return len(stale)


class _remote_errors:
    """Turns a remote file system's errors into LakeError, naming the object. FileNotFoundError passes."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, FileNotFoundError) or not isinstance(error, Exception):
            return
        raise LakeError(
            f"{self.what}: {type(error).__name__}: {error}. Check `lake.url`, the endpoint and the credentials "
            "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, …)."
        ) from error


_readers: dict[tuple[str, str, float], RangeReader] = {}


def _reader(url: str, options: tuple[tuple[str, Any], ...], timeout: float) -> RangeReader:
    return _readers.setdefault((url, repr(options), timeout), RangeReader(url, dict(options), timeout))


def open_zone(root: Path, name: str, lake_url: str | None, zone_urls: dict[str, str], recipe: str) -> Zone:
    """Zone `name` of the recipe whose folder is `root`: objects in `data/<name>`, or below the lake's (or the zone's
    own) URL when that is remote or another local folder."""
    url = zone_urls.get(name) or (f"{lake_url.rstrip('/')}/{recipe}/{name}" if lake_url else None)
    if url:
        bare = url.removeprefix("file://").removeprefix("local://")
        url = url if "://" in bare else str(root / bare)  # relative ones start at the recipe's folder, as sources do
    return Zone(root / "data" / name, url)
