"""Listing files that fsspec reaches: which there are, and a fingerprint of each that changes when its content does."""

import fnmatch
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipelines.ingest.sources import examples
from pipelines.ingest.sources.member import Place, SourceFile
from pipelines.ingest.sources.walk import walk
from storage.digest import digest_file
from storage.errors import SourceError
from storage.redact import mask

_MAGIC = re.compile(r"[*?\[]")
_NOTED = 64  # fingerprints at a time

Infos = dict[str, dict[str, Any]]  # path or name → what is known of it


def excluded(name: str, patterns: list[str]) -> bool:
    rooted = f"/{name}"  # so that **/test/** also matches a test folder at the top
    return any(fnmatch.fnmatchcase(rooted, p if p.startswith("*") else f"/{p}") for p in patterns)


def list_files(source: str, place: Place) -> list[SourceFile]:
    """The files of a URL, glob or folder. Raises SourceError."""
    ingest, root, state = place.ingest, place.root, place.state
    expanded, literal, exclude = examples.expand(source, state), "", ingest.exclude
    *archives, last = expanded.split("::")
    if "://" not in last and not Path(last).is_absolute():
        expanded = "::".join([*archives, str(root / last)])
        literal = "" if archives else f"{root}/"
    try:
        fs, path = url_to_fs(expanded)
        known = len(literal) if path.startswith(literal) else 0
        base, infos = _find(fs, path, exclude, _literal(fs, path, known))
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(
            mask(f"ingest.sources: {source!r} does not exist ({error}). ")
            + f"Check the path; relative ones start at {root}."
        ) from error
    except Exception as error:
        raise SourceError(
            mask(f"ingest.sources: {source!r} cannot be listed: {type(error).__name__}: {error}. ")
            + "Check the URL, that its fsspec driver is installed, and the credentials in the environment."
        ) from error
    web = expanded.startswith(("http://", "https://"))  # whose query may hold a signature: no part of a name
    names = {path: _below(base, path.split("?")[0] if web else path, source) for path in infos}
    infos = {path: info for path, info in infos.items() if not excluded(names[path], exclude)}
    if isinstance(fs, LocalFileSystem):
        _refuse_lost(source, {names[path]: info["leads"] for path, info in infos.items() if "leads" in info})
        if ingest.links == "inside" and "{" not in source:  # an interpreter's own library may be linked together
            _refuse_outside(source, {names[path]: info["outside"] for path, info in infos.items() if "outside" in info})
        try:
            marks = dict(zip(infos, place.digests(list(infos)), strict=True))
        except (OSError, UnicodeError) as error:
            raise SourceError(
                f"ingest.sources: {source!r}: a file cannot be read: {error}. Mend it, or leave it out with "
                "ingest.exclude."
            ) from error
    else:
        marks = {path: _remote_fingerprint(fs, path, info) for path, info in infos.items()}
    urls = dict(zip(infos, _urls(fs, list(infos), expanded), strict=True))
    return [SourceFile(names[path], urls[path], int(info["size"] or 0), marks[path]) for path, info in infos.items()]


def _refuse_lost(source: str, links: dict[str, str]) -> None:
    """Raise SourceError where there are `links`, by name, to what is not there: data that somebody counts on."""
    if links:
        raise SourceError(
            f"ingest.sources: {source!r}: {len(links)} of its files are links that lead to nothing: {_first(links)}. "
            "Mend them, or leave them out with ingest.exclude."
        )


def _refuse_outside(source: str, links: dict[str, str]) -> None:
    """Raise SourceError where links lead to files that nobody named."""
    if links:
        raise SourceError(
            f"ingest.sources: {source!r}: {len(links)} of its files lie outside of its folder, where links lead to: "
            f"{_first(links)}. Set ingest.links: anywhere if they are to be read, or leave them out with "
            "ingest.exclude."
        )


def _first(links: dict[str, str]) -> str:
    shown = ", ".join(f"{name} → {target}" for name, target in list(links.items())[:3])
    return f"{shown}, …" if len(links) > 3 else shown


def _urls(fs: fsspec.AbstractFileSystem, paths: list[str], source: str) -> list[str]:
    """The URLs by which the files at `paths`, found by `source`, are opened anywhere: with the host that the source
    names (ftp://me@host/…, github://org:repo@…), and the archive that it looks into (zip://*.csv::s3://bucket/a.zip)."""
    first, chained, rest = source.partition("::")
    plain = [str(fs.unstrip_protocol(path)) for path in paths]
    if chained and "://" in first:  # else it is a cache: simplecache::s3://…
        return [f"{url}::{rest}" for url in plain]
    place, kind = re.match(r"[^/]+://[^/]*/", source), type(fs)
    if chained or place is None or not paths or isinstance(fs, LocalFileSystem):
        return plain
    within = [path.lstrip("/") for path in paths]
    shorter = [path.partition("/")[2] for path in within]  # a path may begin with what stands for the host
    host = kind._get_kwargs_from_urls(source)
    for urls in (plain, *([place[0] + path for path in part] for part in (within, shorter))):
        if (kind._get_kwargs_from_urls(urls[0]), kind._strip_protocol(urls[0])) == (host, paths[0]):
            return urls
    return plain


def _find(fs: fsspec.AbstractFileSystem, path: str, exclude: list[str], literal: int) -> tuple[str, Infos]:
    """(fixed part, path → info) of the files at `path`: a file, a folder (all below it) or a glob. Its first `literal`
    characters are no pattern."""
    local = isinstance(fs, LocalFileSystem)
    wildcard = re.compile(r"[*\[]") if path.startswith("http") else _MAGIC  # there a ? begins the query
    if magic := wildcard.search(path, literal):
        base = path[: magic.start()].rpartition("/")[0]
        if not fs.exists(base or "/"):
            raise FileNotFoundError(base)
        pattern = path[len(base) :]
        found = _walk(base, pattern[1:], exclude) if local else fs.glob(_escaped(base) + pattern, detail=True)
    elif not path.endswith("/") and fs.isfile(path):  # a web server's list of a folder is no file
        base, found = path.rpartition("/")[0], {path: fs.info(path)}
    elif fs.isdir(path):
        base = path.rstrip("/")
        found = _walk(base, "**", exclude) if local else fs.find(path, detail=True)
    else:
        raise FileNotFoundError(path)
    return base, {name: info for name, info in sorted(found.items()) if info["type"] == "file"}


def _walk(base: str, pattern: str, exclude: list[str]) -> Infos:
    return walk(base, pattern, lambda name: excluded(name, exclude))


def _escaped(path: str) -> str:
    return path.replace("[", "[[]")


def _literal(fs: fsspec.AbstractFileSystem, path: str, known: int) -> int:
    """How many characters of `path` are no pattern: those of its first `known`, and of what is there by that very name
    though there are brackets in it."""
    if "[" not in path[known:]:
        return known
    at = known
    while (end := path.find("/", at)) >= 0 or at < len(path):
        part = path[at : end if end >= 0 else len(path)]
        if re.search(r"[*?]", part) or ("[" in part and not fs.exists(path[: at + len(part)])):
            return at
        at += len(part) + 1
    return len(path)


def _below(base: str, path: str, source: str) -> str:
    """The name of `path`: what follows `base`. Raises SourceError where it leads out of that: in an archive it may."""
    name = PurePosixPath(path)
    if base or not name.is_absolute():
        with suppress(ValueError):
            name = name.relative_to(base)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(
            mask(f"ingest.sources: {source!r}: {path!r} leads out of {base or 'the archive'!r}. ")
            + "Leave it out with a narrower glob, or pack the archive anew, with names that begin at a folder of it."
        )
    return str(name)


def _remote_fingerprint(fs: fsspec.AbstractFileSystem, path: str, info: dict[str, Any]) -> str:
    for field in (
        "ETag", "etag", "md5Hash", "content_md5", "sha256", "VersionId", "Last-Modified", "Content-MD5", "Digest",
    ):  # fmt: skip
        if info.get(field):
            return f"{field}:{info[field]}"
    stamp = info.get("LastModified") or info.get("mtime") or info.get("created") or fs.ukey(path)
    return f"{info.get('size')}:{stamp}"


class Fingerprints:
    """BLAKE3 of local files, remembered by (path, size, mtime) in a SQLite file: a second scan reads no content. They
    are noted as they are found, so that a scan that is cut off goes on where it was. What is lost is read again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "Fingerprints":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.OperationalError:  # no room, no permission, …
            raise
        except sqlite3.DatabaseError:  # damaged
            for part in (self.file, self.file.with_name(f"{self.file.name}-journal")):
                part.unlink(missing_ok=True)
            self._open()
        return self

    def _open(self) -> None:
        database = sqlite3.connect(self.file)
        try:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE IF NOT EXISTS known (path TEXT PRIMARY KEY, stamp TEXT, digest TEXT)")
            with closing(database.execute("SELECT path, stamp, digest FROM known")) as cursor:
                self._known = {path: (stamp, digest) for path, stamp, digest in cursor}
        except BaseException:
            database.close()
            raise
        self._db = database

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def of(self, paths: list[str]) -> list[str]:
        """The digest of each file."""
        stamps = {path: _stamp(Path(path)) for path in paths}
        missing = [path for path in paths if self._known.get(path, ("", ""))[0] != stamps[path]]
        found = zip(missing, _digests(missing), strict=True)
        while part := list(islice(found, _NOTED)):
            rows = [(path, stamps[path], digest) for path, digest in part]
            with self._db:  # commits, so that others need not wait for long
                self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", rows)
            self._known |= {path: (stamp, digest) for path, stamp, digest in rows}
        return [self._known[path][1] for path in paths]


def _stamp(path: Path) -> str:
    """Changes with the content. The time of the last change of status is in it, since tools set the other one, and a
    clock that is set back may give it again."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def _digests(paths: list[str]) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda path: digest_file(Path(path)), paths)
