"""What speaks to the objects of a zone: obstore for S3, Google and Azure, fsspec for every other URL."""

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from typing_extensions import Buffer

from storage.errors import LakeError
from storage.objects.credentials import s3_settings
from storage.objects.s3_reads import Came, S3Reads, proxied, tls_context
from storage.redact import mask

_S3 = ("s3", "s3a")
_OBSTORE = (*_S3, "gs", "gcs", "az", "abfs", "abfss", "adl", "azure")
_CHUNK = 64 << 10  # bytes handed over at a time: larger ones are put together by one more copy
_PLACES = 1024  # URLs of objects remembered
_UPLOAD_PART = 8 << 20  # bytes
_MOST_PARTS = 5_000  # S3 takes 10,000
_LAST_PAUSE = timedelta(seconds=1.5)  # between two attempts at an upload
_UPLOADS = 4  # parts of an object sent at once

Kind = Literal["missing", "beyond", "denied", "refused", "busy", "passing"]


@dataclass(frozen=True)
class Failure:
    """Why an operation failed: the object is `missing`, the range lies `beyond` its end, access is `denied` (the
    credentials may have expired), the request is `refused` for good, the server is `busy` and asks for fewer requests,
    or the cause may be `passing`."""

    kind: Kind
    reason: str


class Client(Protocol):
    """One attempt at each operation; `path` is relative to the zone. Errors are its own: `explain` says what they mean.

    Safe for threads, not for a fork. `resumes`: whether what came of a read that broke off stays, so that it may be a
    large one.
    """

    resumes: bool

    def read_into(self, path: str, start: int, out: memoryview, came: Came, failures: int = 0) -> None:
        """Fill `out` from byte `start` of an object on, in order, or as far as the object goes; `came(n)` as n bytes
        more are there. What `came` raises ends it. `failures`: attempts before this one that brought nothing."""

    def size(self, path: str) -> int:
        """Bytes of an object."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Name → bytes of the objects right below `folder`."""

    def paths(self) -> dict[str, int]:
        """Path → bytes of every object, at any depth."""

    def put(self, path: str, source: Buffer | Path) -> None:
        """Write an object in whole: nobody ever sees a part of it."""

    def delete(self, path: str) -> None:
        """Remove an object. Removing one that isn't there may succeed, or fail as missing."""

    def explain(self, error: Exception) -> Failure: ...

    def renew(self) -> bool:
        """Forget the credentials, so that the next attempt looks for new ones. False where that cannot help."""


class ObstoreClient:
    """S3, Google Cloud Storage and Azure through obstore, a Rust library that works outside the GIL; what is read of S3
    comes straight from the socket (see direct.py).

    A read that makes no progress, or is not done, within a quarter of `timeout` [s] is cut: the caller tries again
    where it broke off. An upload cannot be taken up midway, so obstore repeats the requests of one by itself.
    """

    resumes = True

    def __init__(self, url: str, options: dict[str, Any], timeout: float) -> None:
        self.url, self.options, self.timeout = url, options, timeout
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        from obstore.store import from_url

        scheme, rest = self.url.split("://", 1)
        http: dict[str, Any] = {}
        config, self._credentials = dict(self.options), None
        if scheme in _S3:
            config, http, self._credentials = s3_settings(self.options)
        url = f"{scheme.replace('gcs', 'gs')}://{quote(rest, safe='/@')}"
        place: dict[str, Any] = {"url": url, "config": config}
        if self._credentials is not None:
            place["credential_provider"] = self._credentials
        make: Callable[..., Any] = from_url
        limit = timedelta(seconds=self.timeout)
        http["connect_timeout"] = min(limit / 4, timedelta(seconds=5))
        reads = {**http, "read_timeout": limit / 4, "timeout": limit / 4}
        self._reads = make(**place, client_options=reads, retry_config={"max_retries": 0})
        asks = {**http, "timeout": limit / 12}  # small ones: a server that was restarted may have forgotten them
        self._asks = make(**place, client_options=asks, retry_config={"max_retries": 0})
        pause = {"init_backoff": timedelta(seconds=0.1), "max_backoff": min(limit / 8, _LAST_PAUSE), "base": 2}
        retry = {"max_retries": 100, "retry_timeout": limit / 2, "backoff": pause}
        # less than half, so that one which was forgotten is repeated
        self._writes = make(**place, client_options={**http, "timeout": 0.45 * limit}, retry_config=retry)
        self._direct = self._open_direct(config, http) if scheme in _S3 else None

    def _open_direct(self, config: dict[str, Any], http: dict[str, Any]) -> S3Reads | None:
        """None where what is read needs no signature, or comes through a proxy."""
        import obstore

        def find(path: str) -> str:
            url: str = obstore.sign(self._reads, "GET", path, timedelta(seconds=60))
            return url.partition("?")[0]

        if config.get("skip_signature") or proxied(find("x")):
            return None
        key = self._credentials or (lambda: {name.removeprefix("session_"): value for name, value in config.items()})
        return S3Reads(lru_cache(_PLACES)(find), key, config["region"], tls_context(http), self.timeout / 4)

    def read_into(self, path: str, start: int, out: memoryview, came: Came, failures: int = 0) -> None:
        if self._direct is not None:
            self._direct.read_into(path, start, out, came, failures)
            return
        self._stream_into(path, start, out, came)

    def _stream_into(self, path: str, start: int, out: memoryview, came: Came) -> None:
        import obstore

        at = 0
        for piece in obstore.get(self._reads, path, options={"range": (start, start + len(out))}).stream(_CHUNK):
            size = memoryview(piece).nbytes
            out[at : at + size] = piece
            at += size
            came(size)

    def size(self, path: str) -> int:
        import obstore

        return int(obstore.head(self._asks, path)["size"])

    def sizes(self, folder: str) -> dict[str, int]:
        import obstore

        pages = obstore.list(self._reads, f"{folder}/")
        return {entry["path"].rsplit("/", 1)[-1]: int(entry["size"]) for page in pages for entry in page}

    def paths(self) -> dict[str, int]:
        import obstore

        return {entry["path"]: int(entry["size"]) for page in obstore.list(self._reads) for entry in page}

    def delete(self, path: str) -> None:
        import obstore

        obstore.delete(self._writes, path)

    def put(self, path: str, source: Buffer | Path) -> None:
        import obstore

        data = source if isinstance(source, Path) else memoryview(source).cast("B")
        size = data.stat().st_size if isinstance(data, Path) else data.nbytes
        part = max(_UPLOAD_PART, -(-size // _MOST_PARTS))
        obstore.put(self._writes, path, data, chunk_size=part, max_concurrency=_UPLOADS)

    def explain(self, error: Exception) -> Failure:
        from obstore.exceptions import (
            InvalidPathError,
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        text = _brief(error)
        code = re.search(r"<Code>(\w+)</Code>", text)
        status = re.search(r"status code: (\d{3})", text)
        number = int(status[1]) if status else 0
        reason = re.sub(r":? *<\?xml.*|:? *<Error>.*", "", text, flags=re.DOTALL) + (f" ({code[1]})" if code else "")
        expired = code is not None and code[1] in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
        if isinstance(error, FileNotFoundError) or number == 404:
            bucket = code is not None and code[1] == "NoSuchBucket"
            return Failure("refused" if bucket else "missing", reason)
        if number == 429 or (code is not None and code[1] == "SlowDown"):
            return Failure("busy", reason)
        if isinstance(error, LakeError) or expired or isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return Failure("denied", reason)
        if isinstance(error, InvalidPathError | NotSupportedError | ValueError | TypeError):
            return Failure("refused", reason)
        return Failure(_of_status(number), reason)

    def renew(self) -> bool:
        with self._lock:
            if self._credentials is None:
                return False
            self._open()
            return True


def _hidden(error: Exception) -> Exception | None:
    """What a driver's FileNotFoundError hides: that of HTTP raises it for whatever keeps it from an object."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return None
    status, aiohttp = _status(cause), type(cause).__module__.startswith("aiohttp")
    if status in (404, 410) or not (status or aiohttp or isinstance(cause, ConnectionError | TimeoutError)):
        return None
    return cause


def _status(error: Exception) -> int:
    """The HTTP status that an error (aiohttp's, say) names; 0 where it names none."""
    found = getattr(error, "status", 0)
    return found if isinstance(found, int) else 0


def _of_status(status: int) -> Kind:
    """What an HTTP status means; 0 where there was none."""
    if status == 416:
        return "beyond"
    if status in (401, 403):
        return "denied"
    if status == 429:
        return "busy"
    return "refused" if 300 <= status < 500 and status not in (408, 409) else "passing"


def _brief(error: Exception) -> str:
    """What an error of obstore's says, without Rust's view of it."""
    return str(error).split("\n\nDebug source")[0].rstrip(".")


class FsspecClient:
    """Any URL through its fsspec driver."""

    resumes = False  # a driver gives a range as a whole, or none of it

    def __init__(self, url: str, options: dict[str, Any], timeout: float) -> None:
        self.url, self.timeout = url, timeout
        if url.startswith(("s3://", "s3a://")):
            limits = {"connect_timeout": min(timeout / 4, 5), "read_timeout": timeout / 4}
            options = {"config_kwargs": limits, **options}
        try:
            fs, root = url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise LakeError(
                f"lake.url={mask(url)!r} cannot be opened: {error}. Check the scheme, or install its fsspec driver."
            ) from error
        self._fs: fsspec.AbstractFileSystem = fs
        self._root = root.rstrip("/")
        # A store shows an object once it is whole; a file system (sftp, smb, …) shows it as it is written.
        self._whole = url.split("://", 1)[0] in (*_OBSTORE, "memory", "oss", "oci", "r2", "http", "https")
        # A folder that cannot be read is no empty one, which it is for fsspec unless told.
        self._loud = {"on_error": "raise"} if type(fs).find is fsspec.AbstractFileSystem.find else {}
        # The drivers that have an event loop take a limit for each call.
        self._limit = {"timeout": timeout / 4} if getattr(fs, "async_impl", False) else {}

    def read_into(self, path: str, start: int, out: memoryview, came: Came, failures: int = 0) -> None:
        stop = start + len(out)
        data = self._fs.cat_file(f"{self._root}/{path}", start=start, end=stop, **self._limit)
        if len(data) > len(out):  # a web server that knows no ranges sends the whole
            data = memoryview(data)[start:stop]
        out[: len(data)] = data
        came(len(data))

    def size(self, path: str) -> int:
        return int(self._fs.info(f"{self._root}/{path}", **self._limit)["size"])

    def sizes(self, folder: str) -> dict[str, int]:
        found = self._find(f"{self._root}/{folder}")
        return {path.rsplit("/", 1)[-1]: int(info["size"]) for path, info in found.items()}

    def paths(self) -> dict[str, int]:
        found = self._find(self._root)
        return {path[len(self._root) + 1 :]: int(info["size"]) for path, info in found.items()}

    def _find(self, folder: str) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(folder, detail=True, **self._loud, **self._limit)
            return found
        except FileNotFoundError as error:
            if _hidden(error) is not None:
                raise
            return {}

    def delete(self, path: str) -> None:
        self._fs.rm_file(f"{self._root}/{path}")

    def put(self, path: str, source: Buffer | Path) -> None:
        final = f"{self._root}/{path}"
        target = final if self._whole else f"{final}.{uuid4().hex}.tmp"
        try:
            if not self._whole:
                self._fs.makedirs(final.rpartition("/")[0], exist_ok=True)
            if isinstance(source, Path):
                self._fs.put_file(str(source), target)
            else:
                self._fs.pipe_file(target, bytes(source))
            if not self._whole:
                self._fs.mv(target, final)
        except BaseException:
            if not self._whole:
                with suppress(Exception):
                    self._fs.rm_file(target)
            raise

    def explain(self, error: Exception) -> Failure:
        hidden = _hidden(error)
        if hidden is not None:
            error = hidden
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError):
            return Failure("missing", reason)
        if isinstance(error, PermissionError):
            return Failure("denied", reason)
        if isinstance(error, ValueError | TypeError | NotImplementedError):
            return Failure("refused", reason)
        return Failure(_of_status(_status(error)), reason)

    def renew(self) -> bool:
        return False


_obstore_process: int | None = None  # where obstore's threads run; they don't survive a fork


def open_client(url: str, options: dict[str, Any], timeout: float) -> Client:
    """The client for `url`. Raises LakeError when the URL or an option is unknown.

    In a process forked after obstore was used, obstore would wait for threads that aren't there: fsspec steps in.
    """
    global _obstore_process
    if url.split("://", 1)[0] not in _OBSTORE or _obstore_process not in (None, os.getpid()):
        return FsspecClient(url, options, timeout)
    _obstore_process = os.getpid()
    try:
        return ObstoreClient(url, options, timeout)
    except LakeError:
        raise
    except Exception as error:
        raise LakeError(
            f"lake.url={mask(url)!r} cannot be opened: {_brief(error)}. Check the URL and the environment."
        ) from error
