"""Work on arrays of very many numbers, in two threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

ALONE = 1 << 17  # fewer numbers take no longer than a second thread takes to start


def in_halves(count: int, work: Callable[[slice], object]) -> None:
    """`work` on the halves of [0, count), where these are large in two threads: of what NumPy does without the GIL."""
    lower, upper = slice(0, count // 2), slice(count // 2, count)
    if count < ALONE:
        work(lower)
        work(upper)
        return
    with ThreadPoolExecutor(1) as other:
        done = other.submit(work, lower)
        work(upper)
        done.result()
