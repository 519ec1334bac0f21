"""Operations on a zone's objects that outlive a bad network: tried again, bounded in time, with one clear error.

Requests are repeated with exponential back-off and jitter; a read that breaks off goes on where it broke; credentials
that the server calls expired are looked for anew. An operation without progress for `compute.lake_timeout` seconds
fails, and its LakeError names the object; whoever waits for it is told so after a few seconds.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Buffer

from storage.errors import Cancelled, LakeError
from storage.forks import ForkLock
from storage.objects.clients import Client, Failure, open_client
from storage.objects.ranges import PART, Cutter, Ranges
from storage.redact import mask

T = TypeVar("T")

TIMEOUT = 60.0  # seconds
_CREDENTIALS = {  # where they are looked for first, by the beginning of the URL
    "s3": " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, …)",
    "gs": " (GOOGLE_APPLICATION_CREDENTIALS, …)",
    "az": " (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, …)",
}
_AMBIGUOUS = {"s3": ". (S3 says so of objects that don't exist, too, where the credentials may not list the bucket)"}
_FIRST_PAUSE = 0.1  # seconds between two attempts
_LAST_PAUSE = {"passing": 1.5, "busy": 5.0}  # an outage may end at any time; who asks for fewer requests gets them
_SILENCE = 1 / 16  # of the time-out: so long without progress that nobody need hear of it
_TOLD_EVERY = 30.0  # seconds between two lines about a place
_log = logging.getLogger(__name__)


class _Within(threading.local):
    """Of each thread: whether nobody waits any more for what it reads."""

    is_over: Callable[[], bool] = staticmethod(lambda: False)


_within = _Within()


@contextmanager
def until(is_over: Callable[[], bool]) -> Iterator[None]:
    """What this thread reads inside ends by Cancelled soon after `is_over()`, which any thread may ask: at the next
    piece that comes, or the next attempt."""
    outside, _within.is_over = _within.is_over, is_over
    try:
        yield
    finally:
        _within.is_over = outside


class RangeReader:
    """Reads, and writes, the objects below `url`. Safe for threads, and usable in a forked process.

    `options` are fsspec's for that URL (those of s3fs for S3). `timeout` is in seconds: as long as an operation may go
    on without progress, attempts and pauses included.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, timeout: float = TIMEOUT) -> None:
        self.url, self.options, self.timeout = url.rstrip("/"), dict(options or {}), timeout
        self._lock = ForkLock()
        self._opened: tuple[int, Client, Cutter] | None = None
        self._told = float("-inf")

    def read_into(
        self, path: str, offset: int, out: Buffer, on_range: Callable[[int, int], None] | None = None
    ) -> None:
        """Fill the writable buffer `out` with object `path` from byte `offset` on, by ranged reads side by side.

        `on_range(start, stop)` is called as bytes [start, stop) of `out` have arrived: each byte once, in pieces that
        start at multiples of 1 MiB, in any order, from any thread, but never from two at once. What it raises ends the
        read, and it isn't called again. No byte of `out` changes after the return.

        Raises LakeError when the object is missing, ends before, or cannot be read within the time-out, and Cancelled
        (see `until`). What was read is not verified: that is the caller's.
        """
        view = memoryview(out).cast("B")
        job = _Job(self, path, offset, view, on_range)
        with job.cutter.cut(view.nbytes) as (ranges, at_once):
            job.fill_all(ranges, at_once)
        job.check()

    def size(self, path: str) -> int:
        """Bytes of object `path`. Raises FileNotFoundError when it isn't there."""
        return self._persist(path, lambda client, _: client.size(path))

    def sizes(self, folder: str) -> dict[str, int]:
        """Name → bytes of the objects right below `folder`, by one listing."""
        return self._persist(folder, lambda client, _: client.sizes(folder))

    def paths(self) -> dict[str, int]:
        """Path → bytes of every object, at any depth."""
        return self._persist("", lambda client, _: client.paths())

    def delete(self, path: str) -> None:
        """Remove object `path`, if it is there."""
        with suppress(FileNotFoundError):
            self._persist(path, lambda client, _: client.delete(path))

    def put(self, path: str, source: Buffer | Path) -> None:
        """Write object `path` from bytes or a local file: by one request or in parts, never visible half-written."""
        try:
            self._persist(path, lambda client, _: client.put(path, source), attempt_share=1)
        except FileNotFoundError as error:
            raise LakeError(
                f"{self.describe(path)}: the place to write it to does not exist. Check `lake.url`: the bucket (or the "
                "container) must be there."
            ) from error

    def describe(self, path: str) -> str:
        """A name for object `path` that a person can find."""
        return mask(f"{self.url}/{path}")

    # -- attempts ------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[int, Client, Cutter]:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                client = open_client(self.url, self.options, self.timeout)
                self._opened = (os.getpid(), client, Cutter(client.resumes))
            return self._opened

    @property
    def far(self) -> bool:
        """Whether the store's connections have been slow in this process, so that many of them are faster."""
        opened = self._opened
        return opened is not None and opened[0] == os.getpid() and opened[2].far

    def _persist(self, path: str, attempt: Callable[[Client, "_Patience"], T], attempt_share: float = 0.25) -> T:
        """Do `attempt` until it succeeds, fails for good, or is without progress for the time-out, of which one attempt
        takes `attempt_share` at most."""
        client = self._open()[1]
        patience = _Patience(self.describe(path), client, self.timeout, attempt_share, self._tell)
        while True:
            try:
                return attempt(client, patience)
            except (_Cancelled, _Callback):
                raise
            except Exception as error:
                patience.after(error)

    def _tell(self, line: str) -> None:
        """A warning, unless there has just been one: many operations meet the same trouble at once."""
        with self._lock:
            now = time.monotonic()
            if now - self._told < _TOLD_EVERY:
                return
            self._told = now
        _log.warning(line)


class _Job:
    """One `read_into`: what its ranges share."""

    def __init__(
        self,
        reader: RangeReader,
        path: str,
        offset: int,
        view: memoryview,
        on_range: Callable[[int, int], None] | None,
    ) -> None:
        self.reader, self.path, self.offset, self.view, self.on_range = reader, path, offset, view, on_range
        self.failed, self.is_over, self.cutter = False, _within.is_over, reader._open()[2]
        self._serial = threading.Lock()

    def fill_all(self, ranges: Ranges, at_once: int) -> None:
        """Those ranges of the buffer, some of them side by side."""
        if len(ranges) <= 1 or at_once == 1:
            for start, stop in ranges:
                self.fill(start, stop)
            return
        with ThreadPoolExecutor(min(at_once, len(ranges)), thread_name_prefix="lake") as pool:
            tasks = [pool.submit(self.fill, start, stop) for start, stop in ranges]
            try:
                for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                    task.result()
            except BaseException:
                self.failed = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # after the others have left

    def fill(self, start: int, stop: int) -> None:
        """Bytes [start, stop) of the buffer; an attempt goes on where the one before broke off."""
        at = told = start

        def attempt(client: Client, patience: "_Patience") -> None:
            def came(size: int) -> None:
                nonlocal at, told
                if self.cancelled:
                    raise _Cancelled
                at += size
                whole = at if at == stop else at // PART * PART
                if whole > told:
                    patience.progress()
                    self._tell(told, whole)
                    told = whole

            while at < stop:
                if self.cancelled:
                    raise _Cancelled
                begun, since = at, time.perf_counter()
                client.read_into(self.path, self.offset + at, self.view[at:stop], came, patience.failures)
                self.cutter.note(at - begun, time.perf_counter() - since)
                if at == begun:
                    raise _Beyond(f"it ends before byte {self.offset + stop}")

        try:
            self.reader._persist(self.path, attempt)
        except FileNotFoundError as error:
            raise missing_object(self.reader.describe(self.path)) from error
        except _Callback as raised:
            raise raised.error from None
        except _Cancelled:
            pass  # the range that failed says why, or `check`

    @property
    def cancelled(self) -> bool:
        return self.failed or self.is_over()

    def check(self) -> None:
        """Raise Cancelled where the ranges may have ended before all was read."""
        if self.is_over():
            raise Cancelled(f"{self.reader.describe(self.path)}: nobody waits for it any more")

    def _tell(self, start: int, stop: int) -> None:
        if self.on_range is None:
            return
        with self._serial:
            if not self.cancelled:
                try:
                    self.on_range(start, stop)
                except Exception as error:
                    self.failed = True  # it is not called again
                    raise _Callback(error) from error


class _Cancelled(Exception):
    """Another range of the object failed, or nobody waits for it."""


class _Beyond(Exception):
    """No byte came, and no error either."""


class _Callback(Exception):
    """What `on_range` raised."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Patience:
    """Decides after each failed attempt whether there is another one, and when."""

    def __init__(
        self, what: str, client: Client, timeout: float, attempt_share: float, tell: Callable[[str], None]
    ) -> None:
        self.what, self.client, self.timeout, self.tell = what, client, timeout, tell
        self.latest_start = timeout * (1 - attempt_share)  # seconds after the last progress
        self.renewed = False
        self.progress()

    def progress(self) -> None:
        """The operation has come further: the time-out begins anew."""
        self.since, self.pause, self.failures = time.monotonic(), _FIRST_PAUSE, 0

    def after(self, error: Exception) -> None:
        """Wait for the next attempt, or raise FileNotFoundError or LakeError."""
        failure = Failure("beyond", str(error)) if isinstance(error, _Beyond) else self.client.explain(error)
        if failure.kind == "missing":
            raise FileNotFoundError(self.what) from error
        if failure.kind == "beyond":
            raise LakeError(
                f"{self.what}: the object is shorter than the manifest says: it was cut off or replaced after it was "
                f"written. Delete it and run the stage again. ({failure.reason})"
            ) from error
        if failure.kind == "refused":
            raise self._error(failure.reason) from error
        self.failures += 1
        if failure.kind == "denied":
            if self.renewed or not self.client.renew():
                raise self._error(f"no permission: {failure.reason}{_AMBIGUOUS.get(self.what[:2], '')}") from error
            self.renewed = True
            return
        self.renewed = False
        elapsed = time.monotonic() - self.since
        pause = random.uniform(self.pause / 2, self.pause)  # noqa: S311 - jitter, no secret
        self.pause = min(2 * self.pause, self.timeout / 8, _LAST_PAUSE[failure.kind])
        if elapsed + pause > self.latest_start:
            raise self._error(
                f"no progress in {elapsed:.1f} s, {self.failures} attempts (compute.lake_timeout={self.timeout:g}): "
                f"{failure.reason}"
            ) from error
        if elapsed > _SILENCE * self.timeout:
            self.tell(
                f"{self.what}: no progress for {elapsed:.0f} s ({failure.reason}); trying on until "
                f"compute.lake_timeout={self.timeout:g} s."
            )
        time.sleep(pause)

    def _error(self, reason: str) -> LakeError:
        return LakeError(
            f"{self.what}: {reason.rstrip('.: ')}. Check `lake.url`, that the server is up, the endpoint and the "
            f"credentials in the environment{_CREDENTIALS.get(self.what[:2], '')}."
        )


def missing_object(what: str) -> LakeError:
    """The error for an object that a manifest names and nobody finds."""
    return LakeError(
        f"{what}: an object that the manifest names is missing. "
        "Restore it with `dvc pull` (or `dvc checkout`), or delete the manifest and run the stage again."
    )


@contextmanager
def readable(what: str, *, missing: bool = True) -> Iterator[None]:
    """Turn the operating system's errors of reading into a LakeError that names `what`: missing objects too, unless
    `missing` leaves them as they are."""
    try:
        yield
    except FileNotFoundError as error:
        if not missing:
            raise
        raise missing_object(what) from error
    except OSError as error:
        raise LakeError(f"{what}: cannot be read ({error.strerror or error}). Check its permissions.") from error
