"""Where the items of a data stage run: threads or processes of this machine. Prefect tasks map the same `work`."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection
from typing import Protocol, TypeVar

from pipelines.params import Compute
from storage.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")
_MUCH = 256 << 20  # bytes of input from which the start of worker processes pays


class Executor(Protocol):
    """Applies `work` to every item and yields results as they come, in any order; the first error is raised."""

    def map(self, work: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]: ...


class PoolExecutor:
    """Items on a pool of `workers` threads or processes; no more than four items a worker are in flight."""

    def __init__(self, workers: int, *, processes: bool) -> None:
        self.workers, self.processes = workers, processes

    def map(self, work: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
        waiting = iter(items)
        with self._pool() as pool:
            running = {pool.submit(work, item) for item in islice(waiting, 4 * self.workers)}
            while running:
                done = next(as_completed(running))
                running.discard(done)
                for item in waiting:
                    running.add(pool.submit(work, item))
                    break
                try:
                    result = done.result()
                except BrokenProcessPool as error:
                    raise DataError(
                        "A worker process died, most often for want of memory: lower compute.workers. What was "
                        "finished is kept; the same command goes on."
                    ) from error
                yield result

    @contextmanager
    def _pool(self) -> Iterator[Pool]:
        pool: Pool
        if self.processes:
            spawn = multiprocessing.get_context("spawn")  # fsspec's file systems are not fork-safe
            pool = ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_start_worker)
        else:
            pool = ThreadPoolExecutor(self.workers, thread_name_prefix="shardline-work")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def choose_executor(compute: Compute, total_bytes: int) -> PoolExecutor:
    """The executor that `compute` asks for; `auto` takes processes from 256 MiB of input on."""
    workers = compute.workers or cores()
    processes = compute.engine == "processes" or (compute.engine == "auto" and total_bytes >= _MUCH)
    return PoolExecutor(workers, processes=processes and workers > 1)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
