"""Writing a shard's file, past the page cache where it can be: the disk fetches the bytes itself.

Through the page cache each page is found, cleared and filled by a processor that the readers of the same machine need,
and pushes out others. So what is written behind a reader, who has the shard in memory, goes straight to the disk
(O_DIRECT, open(2)). See docs/decisions/0014.
"""

import errno
import fcntl
import os

_BLOCK = 4096  # bytes; addresses and lengths of direct writes are multiples of it
_LEAST = 4 << 20  # bytes; smaller files are not worth a wait for the disk
_DIRECT = getattr(os, "O_DIRECT", 0)


def write(descriptor: int, view: memoryview, *, direct: bool = False) -> None:
    """Write `view` to an open, empty file; with `direct` past the page cache, as far as that can be. Raises OSError."""
    done = _write_directly(descriptor, view) if direct and _DIRECT and len(view) >= _LEAST else 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], done)


def _write_directly(descriptor: int, view: memoryview) -> int:
    """Write whole blocks; returns how many bytes: none where the file system, or the view's address, forbids it."""
    flags, done, end = fcntl.fcntl(descriptor, fcntl.F_GETFL), 0, len(view) // _BLOCK * _BLOCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT)
        while done < end:
            done += os.pwrite(descriptor, view[done:end], done)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return done
