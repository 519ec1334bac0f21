"""Files that are whole or absent: temp + fsync + rename, with a clear error for a full disk.

What is made here has the permissions that the process's umask (or the folder's default ACL) leaves it.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import Buffer

from storage.errors import LakeError, ShardlineError

#: How libraries word it that hide the system's error in one of their own: SQLite, Rust's std::io, Arrow.
_FULL = ("database or disk is full", "no space left on device", "os error 28", "errno 28", "disk quota exceeded")


def full_disk(error: BaseException, what: str | Path | None = None) -> LakeError | None:
    """A LakeError that names `what` (or the file that `error` names), if a full disk is at the root of `error`."""
    link: BaseException | None = error
    while link is not None:
        full = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(sign in str(link).lower() for sign in _FULL):
            name = what or getattr(link, "filename2", None) or getattr(link, "filename", None) or Path.cwd()
            return LakeError(
                f"{name}: no space left on the device. What was finished is kept; free some space, or place the zone "
                "elsewhere with `lake.url`, then run the same command again."
            )
        link = link.__cause__ or link.__context__
    return None


#: How libraries word it that they may not write.
_DENIED = ("readonly database", "unable to open database file", "read-only file system", "os error 30", "os error 13")


def not_writable(error: BaseException, what: str | Path | None = None) -> LakeError | None:
    """A LakeError that names `what` (or the file that `error` names), if a file or folder that may not be written is at
    the root of `error`."""
    link: BaseException | None = error
    while link is not None:
        denied = isinstance(link, OSError) and link.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        if denied or any(sign in str(link).lower() for sign in _DENIED):
            name = what or getattr(link, "filename2", None) or getattr(link, "filename", None) or Path.cwd()
            reason = getattr(link, "strerror", None) or str(link).splitlines()[0]
            reading = what is None and getattr(link, "errno", None) in (errno.EACCES, errno.EPERM)
            how = "may not be read or written" if reading else "not writable"
            return LakeError(
                f"{name}: {how} ({reason}). Check its permissions and those of its folder, or place it elsewhere: "
                "a zone with `lake.url`, the runs with MLFLOW_TRACKING_URI, `.shardline` as a link to another folder."
            )
        link = link.__cause__ or link.__context__
    return None


_BEGUN = time.time()  # when this process began, nearly
_SKEW = 3600.0  # seconds that the clock of a file server may be ahead


@contextmanager
def storage_errors(what: str | Path) -> Iterator[None]:
    """Turn the operating system's write errors into a LakeError that names `what` and the way out."""
    try:
        yield
    except ShardlineError:
        raise
    except Exception as error:
        if full := full_disk(error, what):
            raise full from error
        if isinstance(error, OSError) and (denied := not_writable(error, what)):
            raise denied from error
        raise


@contextmanager
def temporary_file(folder: Path, prefix: str, mode: int = 0o666) -> Iterator[Path]:
    """A new empty file in `folder`, removed at the end if it is still there. The umask takes its part of `mode`.

    It is locked as long as its process lives, so that `sweep_temporaries` knows those of the dead.
    """
    temporary = folder / f"{prefix}{secrets.token_hex(4)}.tmp"
    with storage_errors(folder):
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with suppress(OSError):  # a file system without locks; nothing is ever swept there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def atomic_path(target: Path, *, durable_name: bool = True) -> Iterator[Path]:
    """A temporary path beside `target`; synced and renamed to it when the block succeeds, removed when it fails.

    `durable_name=False` leaves syncing the folder to the caller, who does so once for many files.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(target.parent, f".{target.name}.") as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            if durable_name:
                sync_folder(target.parent)


@contextmanager
def temporary_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A new empty folder in `folder`, removed at the end with all that is in it, if it is still there."""
    temporary = folder / f"{prefix}{secrets.token_hex(4)}"
    with storage_errors(folder):
        temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_temporaries(folder: Path, pattern: re.Pattern[str]) -> int:
    """Remove the files in `folder` that `temporary_file` made in processes that were killed. Returns how many.

    Only files whose whole name matches `pattern`, that no process holds locked, and that are older than this process,
    or of a time that is to come, since the clock has been set back.
    """
    swept = 0
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(OSError):  # gone, another user's, or locked
            handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                made = os.fstat(handle).st_mtime
                if made < _BEGUN or made > time.time() + _SKEW:
                    os.unlink(entry.path)
                    swept += 1
            finally:
                os.close(handle)
    return swept


def write_atomically(target: Path, data: Buffer) -> Path:
    """Write `data` to `target` so that a crash leaves the old file or the new one, never a part."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return target


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
