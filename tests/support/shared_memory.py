"""Shared memory that has a name: what is made there stays when its process has ended, until somebody removes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.servers import wait_for

PLACE = "/dev/shm"


@contextmanager
def none_is_left(seconds: float = 10) -> Iterator[None]:
    """Whatever the block and its processes do, nothing new is left there, and this process maps nothing more of it."""
    before, mapped = set(os.listdir(PLACE)), _mapped("self")
    yield
    wait_for(lambda: not _left(before), f"the end of what is new in {PLACE}", seconds)
    assert _mapped("self") <= mapped


def _left(before: set[str]) -> set[str]:
    """What is new, but for what other living processes use."""
    new = {f"{PLACE}/{name}" for name in os.listdir(PLACE)} - {f"{PLACE}/{name}" for name in before}
    if new:
        for process in os.listdir("/proc"):
            if process.isdecimal() and int(process) != os.getpid():
                new -= _mapped(process)
    return new


def _mapped(process: str) -> set[str]:
    """What a process maps of it."""
    with suppress(OSError):  # it has ended
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        return {line.split(maxsplit=5)[5] for line in lines if PLACE in line}
    return set()
