"""Groups of batches from one place on, made ahead of whoever takes them."""

import os
import weakref
from collections.abc import Iterator

from pipelines.streaming.prefetch import Prefetcher, close_items
from pipelines.streaming.source import Batch, Source


class Feed(Iterator[list[Batch]]):
    """All batches from (epoch, step) on until before epoch `epochs` (None: without end), a few at a time: prepared at
    least `prefetch` ahead in a thread while the consumer is busy, or made when asked for where that is 0.

    For one consumer at a time, of the process that made it: a thread doesn't survive a fork. Close it or forget it: no
    thread is left behind.
    """

    def __init__(self, source: Source, epoch: int, step: int, epochs: int | None, prefetch: int) -> None:
        self._process = os.getpid()
        self._stop = source.gatherer.fetcher.stop
        self._ahead: Prefetcher[list[Batch]] | None = None
        groups = source.groups(epoch, step, epochs, ahead=prefetch > 0)
        if prefetch:
            depth, at_once = prefetch * source.parts, source.makers > 1
            interrupt = source.gatherer.fetcher.interrupt
            self._ahead = Prefetcher(groups, depth, source.load, at_once=at_once, interrupt=interrupt)
            self._forgotten = weakref.finalize(self, self._ahead.close, wait=False)
        self._groups = self._ahead or (source.load(group) for group in groups)

    def __next__(self) -> list[Batch]:
        return next(self._groups)

    def is_of_this_process(self) -> bool:
        return self._process == os.getpid()

    def interrupt(self) -> None:
        """End the wait of a consumer in another thread: for it, the feed has ended."""
        if self._ahead is not None:
            self._ahead.close(wait=False)

    def close(self) -> None:
        """End the thread, after the group that is being made. A forked process has none to end."""
        if not self.is_of_this_process():
            return
        if self._ahead is not None:
            self._forgotten.detach()
        close_items(self._groups)
        self._stop()
