"""Listing sources: which files there are, and a fingerprint of each that changes when its content does."""

import fnmatch
import os
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipelines.ingest import samples
from pipelines.ingest.domains import inside
from pipelines.params import Ingest
from storage.digest import digest_file
from storage.errors import SourceError

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `name` is its path below the source's fixed part, after that of its domain where there is
    one: the same on every machine."""

    name: str
    url: str
    bytes: int
    fingerprint: str
    domain: str | None = None


def list_sources(ingest: Ingest, root: Path, state: Path) -> list[SourceFile]:
    """Every file that `ingest.sources` matches, by name. Relative paths start at `root`, the recipe's folder.

    A local file's fingerprint is its BLAKE3, kept by size and time in `state` so that it is read once; a remote one's
    is what its store gives (ETag, checksum, version). Raises SourceError for a source that can't be listed, matches
    nothing, or gives two files the same name, and for a file that is in two domains.
    """
    found: dict[str, SourceFile] = {}
    owner: dict[str, str | None] = {}
    sources = [(domain, source) for domain, part in ingest.by_domain for source in part]
    with Fingerprints(state / "fingerprints.db") as fingerprints:
        for domain, source in sources:
            files = _list_one(source, ingest.exclude, root, state, fingerprints)
            if not files:
                raise SourceError(
                    f"ingest.sources: {source!r} matches no file. Check the path (relative ones start at {root}), the "
                    "glob, and ingest.exclude."
                )
            for file in (replace(file, name=inside(domain, file.name), domain=domain) for file in files):
                if (other := found.setdefault(file.name, file)).url != file.url:
                    raise SourceError(
                        f"ingest.sources: {other.url} and {file.url} would both be named {file.name!r}. Give one glob "
                        "that starts at a folder above both."
                    )
                if (first := owner.setdefault(file.url, domain)) != domain:
                    raise SourceError(
                        f"ingest.sources: {file.url} is in the domains {first!r} and {domain!r}, and a sample belongs "
                        "to one. Narrow the sources of one of them."
                    )
    return [found[name] for name in sorted(found)]


def _excluded(name: str, patterns: list[str]) -> bool:
    rooted = f"/{name}"  # so that **/test/** also matches a test folder at the top
    return any(fnmatch.fnmatchcase(rooted, p if p.startswith("*") else f"/{p}") for p in patterns)


def _list_one(
    source: str, exclude: list[str], root: Path, state: Path, fingerprints: "Fingerprints"
) -> list[SourceFile]:
    expanded = samples.expand(source, state)
    if "://" not in expanded and not Path(expanded).is_absolute():
        expanded = str(root / expanded)
    try:
        fs, path = url_to_fs(expanded)
        base, infos = _find(fs, path, exclude)
    except FileNotFoundError as error:
        raise SourceError(
            f"ingest.sources: {source!r} does not exist ({error}). Check the path; relative ones start at {root}."
        ) from error
    except Exception as error:
        raise SourceError(
            f"ingest.sources: {source!r} cannot be listed: {type(error).__name__}: {error}. Check the URL, that its "
            "fsspec driver is installed, and the credentials in the environment."
        ) from error
    web = expanded.startswith(("http://", "https://"))  # whose query may hold a signature: no part of a name
    names = {path: str(PurePosixPath(path.split("?")[0] if web else path).relative_to(base)) for path in infos}
    infos = {path: info for path, info in infos.items() if not _excluded(names[path], exclude)}
    if isinstance(fs, LocalFileSystem):
        try:
            marks = dict(zip(infos, fingerprints.of(list(infos)), strict=True))
        except (OSError, UnicodeError) as error:
            raise SourceError(
                f"ingest.sources: {source!r}: a file cannot be read: {error}. Mend it, or leave it out with "
                "ingest.exclude."
            ) from error
    else:
        marks = {path: _remote_fingerprint(fs, path, info) for path, info in infos.items()}
    return [
        SourceFile(names[path], fs.unstrip_protocol(path), int(info["size"] or 0), marks[path])
        for path, info in infos.items()
    ]


def _find(fs: fsspec.AbstractFileSystem, path: str, exclude: list[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """(fixed part, path → info) of the files at `path`: a file, a folder (all below it) or a glob."""
    wildcard = re.compile(r"[*\[]") if path.startswith("http") else _MAGIC  # there a ? begins the query
    if magic := wildcard.search(path):
        base = path[: magic.start()].rpartition("/")[0]
        if not fs.exists(base or "/"):
            raise FileNotFoundError(base)
        found = _walk(base, path, exclude) if isinstance(fs, LocalFileSystem) else fs.glob(path, detail=True)
    elif fs.isfile(path):
        base, found = path.rpartition("/")[0], {path: fs.info(path)}
    elif fs.isdir(path):
        base = path.rstrip("/")
        found = _walk(base, f"{base}/**", exclude) if isinstance(fs, LocalFileSystem) else fs.find(path, detail=True)
    else:
        raise FileNotFoundError(path)
    return base, {name: info for name, info in sorted(found.items()) if info["type"] == "file"}


def _walk(base: str, pattern: str, exclude: list[str]) -> dict[str, dict[str, Any]]:
    """A local glob that doesn't enter excluded folders (a site-packages below may hold 100,000 files)."""
    wanted = re.compile(glob_translate(pattern))
    found: dict[str, dict[str, Any]] = {}
    for folder, folders, files in os.walk(base, onerror=_fail):
        below = os.path.relpath(folder, base).replace(os.sep, "/").removeprefix(".")
        prefix = f"{below}/" if below else ""
        folders[:] = sorted(name for name in folders if not _excluded(f"{prefix}{name}/", exclude))
        for name in files:
            path = f"{folder}/{name}"
            if wanted.match(path) and os.path.isfile(path):
                found[path] = {"type": "file", "size": os.path.getsize(path)}
    return found


def _fail(error: OSError) -> None:
    raise error  # os.walk would leave an unreadable folder out without a word


def _remote_fingerprint(fs: fsspec.AbstractFileSystem, path: str, info: dict[str, Any]) -> str:
    for field in ("ETag", "etag", "md5Hash", "content_md5", "sha256", "VersionId", "Last-Modified"):
        if info.get(field):
            return f"{field}:{info[field]}"
    stamp = info.get("LastModified") or info.get("mtime") or info.get("created") or fs.ukey(path)
    return f"{info.get('size')}:{stamp}"


class Fingerprints:
    """BLAKE3 of local files, remembered by (path, size, mtime) in a SQLite file: a second scan reads no content."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "Fingerprints":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.file)
        self._db.execute("CREATE TABLE IF NOT EXISTS known (path TEXT PRIMARY KEY, stamp TEXT, digest TEXT)")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.commit()
        self._db.close()

    def of(self, paths: list[str]) -> list[str]:
        """The digest of each file."""
        with closing(self._db.execute("SELECT path, stamp, digest FROM known")) as cursor:
            known = {path: (stamp, digest) for path, stamp, digest in cursor}
        stamps = {path: _stamp(Path(path)) for path in paths}
        missing = [path for path in paths if known.get(path, ("", ""))[0] != stamps[path]]
        fresh = dict(zip(missing, _digests(missing), strict=True))
        rows = [(path, stamps[path], digest) for path, digest in fresh.items()]
        self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", rows)
        return [fresh[path] if path in fresh else known[path][1] for path in paths]


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _digests(paths: list[str]) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda path: digest_file(Path(path)), paths)
