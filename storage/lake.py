"""The lake: where the zones lie. A zone is a local folder with the manifest, and objects there or at a remote URL.

Objects are content-addressed (`objects/<digest><suffix>`) and immutable, so a write is idempotent, equal bytes are
stored once, and a reader needs no lock. A remote object may be compressed at rest: its digest is that of its plain
bytes, and its name ends in `.zst`.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import Any, BinaryIO

from blake3 import blake3
from typing_extensions import Buffer

from storage.atomic import atomic_path, storage_errors, sweep_temporaries, sync_folder, temporary_file
from storage.digest import digest_bytes, digest_file
from storage.errors import DigestError, LakeError
from storage.manifest import FILENAME, Manifest
from storage.objects import compression
from storage.objects.compression import Compression, is_compressed
from storage.objects.retries import TIMEOUT, RangeReader, missing_object, readable
from storage.redact import mask

ZONES = ("raw", "curated", "shards")
OBJECTS = "objects"
_CHUNK = 4 << 20  # bytes copied at a time
_VERIFIED = 64 << 20  # bytes of a remote object verified at a time
_INCOMING = ".shardline.incoming."  # begins the name of a file that waits to be stored
_TEMPORARY = re.compile(rf"({re.escape(_INCOMING)}|\.[0-9a-f]{{64}}[\w.]*\.)\w{{8}}\.tmp")


@dataclass(frozen=True)
class StoredObject:
    """What `Zone.publish` wrote: path relative to the zone, BLAKE3 digest of the plain bytes, size in bytes as it lies
    there and of the plain bytes, which differ where it is compressed at rest."""

    path: str
    digest: str
    bytes: int
    plain_bytes: int


@dataclass(frozen=True)
class Zone:
    """One zone. `folder` (local, a DVC out) holds the manifest; objects are beside it, or below `url` when given.

    `options` are fsspec's for `url` (endpoint, credentials by name). `timeout` is how many seconds the lake may be
    without progress. The object is cheap to pickle; connections are made inside each process.
    """

    folder: Path
    url: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    timeout: float = TIMEOUT

    @property
    def reader(self) -> RangeReader:
        """Reads ranges of the objects, wherever they lie. One a process and place; threads share it."""
        root = self.root
        if root is not None:
            return _reader(str(root.resolve()), (), self.timeout)
        return _reader(str(self.url), self.options, self.timeout)

    @cached_property
    def root(self) -> Path | None:
        """The local folder above `objects/`, or None where the objects are remote."""
        if self.url is None:
            return self.folder
        local = "://" not in self.url or self.url.startswith(("file://", "local://"))
        return Path(self.url.split("://", 1)[-1]) if local else None

    def local_path(self, path: str) -> Path | None:
        """The file of object `path` where it can be mapped: objects are local, and this one is plain. Else None."""
        return self.root / path if self.root is not None and not is_compressed(path) else None

    def describe(self, path: str = "") -> str:
        """A name for object `path` that a person can find."""
        return str(self.root / path) if self.root is not None else mask(f"{self.url}/{path}")

    # -- objects -------------------------------------------------------------------------------------------------

    def publish(self, data: Buffer, suffix: str, how: Compression = "none") -> StoredObject:
        """Store `data`; nothing is written when its object is there already. Atomic, and durable.

        `how` says whether a remote object is compressed at rest; local ones stay plain, since they are mapped.
        """
        view = memoryview(data).cast("B")
        digest = digest_bytes(view)
        packed = compression.compress(view, how) if self.root is None else None
        if packed is not None:
            path = f"{OBJECTS}/{digest}{suffix}{compression.SUFFIX}"
            return self._publish_packed(packed, StoredObject(path, digest, packed.size, view.nbytes))
        stored = StoredObject(f"{OBJECTS}/{digest}{suffix}", digest, view.nbytes, view.nbytes)
        if self.exists(stored.path, stored.bytes):
            return stored
        if self.root is not None:
            with atomic_path(self.root / stored.path, durable_name=False) as temporary:
                temporary.write_bytes(view)
        else:
            self.reader.put(stored.path, view)
        return stored

    def _publish_packed(self, packed: Buffer, stored: StoredObject) -> StoredObject:
        """Another version of zstd may have stored the same plain bytes in other ones: those stay, if they are sound."""
        there = self._size(stored.path)
        if there == stored.bytes:
            return stored
        if there is not None:
            try:
                self.verify(stored.path, stored.digest)
                return replace(stored, bytes=there)
            except (DigestError, LakeError):
                pass  # it is damaged: written anew
        self.reader.put(stored.path, packed)
        return stored

    def publish_stream(self, opened: Callable[[], AbstractContextManager[BinaryIO]], suffix: str) -> StoredObject:
        """Copy what `opened()` reads into the zone in one pass and bounded memory (4 MiB), digesting as it goes.

        It waits in a temporary file (in `objects/`, or where objects are remote in the system's temporary folder)
        until its digest, and so its name, is known.
        """

        def chunks() -> Iterator[bytes]:
            with opened() as source:
                while chunk := source.read(_CHUNK):
                    yield chunk

        return self._publish_chunks(chunks(), suffix)

    def publish_parts(self, parts: Iterable[Buffer], suffix: str) -> StoredObject:
        """Store what `parts` hold, one after the other, without putting them together in memory; see `publish_stream`.

        Unlike with the others, an object that is there is written anew, since it may be damaged.
        """
        views = (memoryview(part).cast("B") for part in parts)
        chunks = (view[start : start + _CHUNK] for view in views for start in range(0, view.nbytes, _CHUNK))
        return self._publish_chunks(chunks, suffix, again=True)

    def _publish_chunks(self, chunks: Iterable[Buffer], suffix: str, *, again: bool = False) -> StoredObject:
        folder = self._waiting
        hasher, size = blake3(), 0
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        mode = 0o666 if self.root is not None else 0o600  # the system's temporary folder is everybody's
        with temporary_file(folder, _INCOMING, mode) as spool:
            with storage_errors(spool):
                target = spool.open("wb")
            try:
                for chunk in chunks:  # what fails here is the source's
                    hasher.update(chunk)
                    with storage_errors(spool):
                        size += target.write(chunk)
                with storage_errors(spool):
                    target.flush()
                    os.fsync(target.fileno())
            finally:
                with storage_errors(spool):  # it writes what is left
                    target.close()
            stored = StoredObject(f"{OBJECTS}/{hasher.hexdigest()}{suffix}", hasher.hexdigest(), size, size)
            if again or not self.exists(stored.path, stored.bytes):
                self._adopt(spool, stored)
        return stored

    @property
    def _waiting(self) -> Path:
        """Where files wait until they are stored: beside the objects, or in the system's temporary folder."""
        return self.root / OBJECTS if self.root is not None else Path(gettempdir())

    def _adopt(self, spool: Path, stored: StoredObject) -> None:
        """Move the synced local file `spool` to its place in the zone."""
        if self.root is not None:
            spool.replace(self.root / stored.path)
        else:
            self.reader.put(stored.path, spool)

    def exists(self, path: str, size: int) -> bool:
        """Whether object `path` is there with `size` bytes."""
        return self._size(path) == size

    def _size(self, path: str) -> int | None:
        """Bytes of object `path`, None where it isn't there."""
        try:
            if self.root is None:
                return self.reader.size(path)
            with readable(self.describe(path), missing=False):
                return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """Path → bytes of every object that is there, by one listing."""
        if self.root is None:
            return {f"{OBJECTS}/{name}": size for name, size in self.reader.sizes(OBJECTS).items()}
        folder = self.root / OBJECTS
        with readable(str(folder)):
            entries = list(os.scandir(folder)) if folder.is_dir() else []
            return {f"{OBJECTS}/{entry.name}": entry.stat().st_size for entry in entries}

    def read(
        self, path: str, digest: str | None = None, size: int | None = None, plain_bytes: int | None = None
    ) -> memoryview:
        """The plain bytes of object `path`, checked against `digest`; a mismatch is read once more, then DigestError.

        `size`, of the object as it lies there, saves a request where it is remote and the size is known. With
        `plain_bytes`, a compressed object that claims another number isn't unpacked.
        """
        found = ""
        for _ in range(2):
            data = self._read(path, size)
            try:
                plain = compression.decompress(data, plain_bytes) if is_compressed(path) else data
            except ValueError as error:
                found = f"none: {error}"
                continue
            if digest is None or (found := digest_bytes(plain)) == digest:
                return memoryview(plain).cast("B").toreadonly()
        raise DigestError(self.describe(path), str(digest), found)

    def _read(self, path: str, size: int | None = None) -> Buffer:
        """The bytes of object `path` as they lie there."""
        with readable(self.describe(path)):
            if self.root is not None:
                return (self.root / path).read_bytes()
            out = _memory(self.describe(path), self.reader.size(path) if size is None else size)
        self.reader.read_into(path, 0, out)
        return out

    @contextmanager
    def opened(self, path: str, digest: str) -> Iterator[BinaryIO]:
        """Object `path` as a file, to be read and sought in as often as one likes. All of it is checked against
        `digest` first; a mismatch is read once more, then DigestError.

        It takes 64 MiB of memory at most, unless it is compressed. One that is larger is read where it lies, or, where
        it is remote, from a copy in the system's temporary folder.
        """
        size = self._size(path)
        if size is None:
            raise missing_object(self.describe(path))
        if size <= _VERIFIED or is_compressed(path):
            data = self.read(path, digest, size)
            whole = data.obj if isinstance(data.obj, bytes) else bytes(data)  # a local file isn't copied
            del data
            yield io.BytesIO(whole)
        elif self.root is not None:
            with readable(self.describe(path)), (self.root / path).open("rb") as file:
                self._check_twice(path, digest, lambda: _pieces(file))
                file.seek(0)
                yield file
        else:
            with temporary_file(Path(gettempdir()), _INCOMING, 0o600) as spool, spool.open("rb+") as copy:
                self._check_twice(path, digest, lambda: self._copied(path, size, copy))
                copy.seek(0)
                yield copy

    def _check_twice(self, path: str, digest: str, read: Callable[[], Iterator[Buffer]]) -> None:
        found = ""
        for _ in range(2):
            hasher = blake3()
            for piece in read():
                hasher.update(piece)
            if (found := hasher.hexdigest()) == digest:
                return
        raise DigestError(self.describe(path), digest, found)

    def _copied(self, path: str, size: int, copy: BinaryIO) -> Iterator[Buffer]:
        """The pieces of a remote object, which are written to `copy`."""
        copy.seek(0)
        for piece in self._remote_pieces(path, size):
            with storage_errors(gettempdir()):
                copy.write(piece)
            yield piece
        with storage_errors(gettempdir()):
            copy.flush()

    def _remote_pieces(self, path: str, size: int) -> Iterator[memoryview]:
        """A remote object, piece by piece, each in the same memory."""
        out = memoryview(bytearray(min(size, _VERIFIED)))
        for start in range(0, size, _VERIFIED):
            piece = out[: min(_VERIFIED, size - start)]
            self.reader.read_into(path, start, piece)
            yield piece

    def verify(self, path: str, digest: str, plain_bytes: int | None = None) -> None:
        """Check object `path` against `digest`; raises DigestError, or LakeError when it is missing. Plain objects take
        64 MiB of memory at most, compressed ones what they take in the lake. Of these, not more than `plain_bytes` are
        unpacked."""
        if (found := self._digest(path, plain_bytes)) != digest:
            raise DigestError(self.describe(path), digest, found)

    def _digest(self, path: str, plain_bytes: int | None) -> str:
        """The digest of the plain bytes of object `path`, or why there is none."""
        if is_compressed(path):
            try:
                return compression.digest_plain(self._read(path), plain_bytes)
            except ValueError as error:
                return f"none: {error}"
        with readable(self.describe(path)):
            if self.root is not None:
                return digest_file(self.root / path)
            size = self.reader.size(path)
        hasher = blake3()
        for piece in self._remote_pieces(path, size):
            hasher.update(piece)
        return hasher.hexdigest()

    # -- manifest ------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether a manifest is there: the zone holds a whole version. Raises LakeError where that can't be told."""
        with readable(str(self.folder / FILENAME)):
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
        versions that were committed). Elsewhere objects stay, since other revisions may name them, and only temporary
        files that killed processes left behind go. Returns how many."""
        folder = self.folder / OBJECTS
        if self.url is not None:
            return self.sweep_temporaries()
        if not folder.is_dir():
            return 0
        named = set(manifest.table["path"].to_pylist())
        stale = [entry for entry in os.scandir(folder) if f"{OBJECTS}/{entry.name}" not in named]
        for entry in stale:
            Path(entry.path).unlink(missing_ok=True)
        return len(stale)

    def sweep_temporaries(self) -> int:
        """Remove the temporary files that killed processes left behind. Returns how many."""
        return sweep_temporaries(self._waiting, _TEMPORARY)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """A file from its beginning on."""
    file.seek(0)
    return iter(lambda: file.read(_CHUNK), b"")


def _memory(what: str, size: int) -> bytearray:
    """Memory for an object of `size` bytes, which may be what somebody claims."""
    try:
        return bytearray(size)
    except (MemoryError, OverflowError) as error:
        raise LakeError(f"{what}: it is said to have {size:,} bytes, for which there is no memory.") from error


_readers: dict[tuple[object, ...], RangeReader] = {}


def _reader(url: str, options: tuple[tuple[str, Any], ...], timeout: float) -> RangeReader:
    place = tuple(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"))
    return _readers.setdefault((url, repr(options), timeout, place), RangeReader(url, dict(options), timeout))


def open_zone(
    root: Path, name: str, lake_url: str | None, zone_urls: dict[str, str], recipe: str, timeout: float = TIMEOUT
) -> Zone:
    """Zone `name` of the recipe whose folder is `root`: objects in `data/<name>`, or below the lake's (or the zone's
    own) URL when that is remote or another local folder. `timeout` in seconds, as `Zone` has it."""
    url = zone_urls.get(name) or (f"{lake_url.rstrip('/')}/{recipe}/{name}" if lake_url else None)
    if url:
        bare = url.removeprefix("file://").removeprefix("local://")
        url = url if "://" in bare else str(root / bare)  # relative ones start at the recipe's folder, as sources do
    return Zone(root / "data" / name, url, timeout=timeout)
