"""One at a time: a lock that is a file, which the system frees when its holder dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.console.progress import say
from storage.atomic import storage_errors


@contextmanager
def exclusive(file: Path, where: Path) -> Iterator[None]:
    """Held by one process (and thread) at a time; others wait, and say so of `where`. It can't be nested."""
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{where}: another run is at work here; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, where nobody can be waited for
            pass
        yield
