"""Progress bars for people: on stderr, only where it is a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from storage.redact import mask

Advance = Callable[..., None]
T = TypeVar("T")


@contextmanager
def progress(title: str, total: float | None, unit: str = "") -> Iterator[Advance]:
    """A bar; call the yielded `advance(n=1, note="")`. Does nothing when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda n=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda n=1, note="": bar.update(task, advance=n, **({"note": note} if note else {}))


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Iterate with a bar."""
    with progress(title, total, unit) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def stepping(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over `total` steps of different kinds; call what is yielded with the name of each as it begins."""
    with progress(title, total, "steps") as advance:
        begun = iter([0])  # the first call ends no step before it
        yield lambda name: advance(next(begun, 1), note=name)


def say(message: str = "") -> None:
    """A line for the person who runs the command, without passwords."""
    print(mask(message), flush=True)
