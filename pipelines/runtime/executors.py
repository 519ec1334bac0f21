"""Where the items of a data stage run: threads or processes of this machine, or Ray. Prefect maps the same `work`."""

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
from typing import Any, Protocol, TypeVar

from pipelines.params import Compute
from pipelines.params.environment import expand
from pipelines.runtime.cores import cores
from pipelines.runtime.ray_cluster import ray_cluster
from storage.errors import DataError, ShardlineError

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
                        "A worker process died, most often for want of memory: lower compute.workers, or cut large "
                        "source files into smaller ones. What was finished is kept; the same command goes on."
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


class RayExecutor:
    """Items as tasks of a Ray cluster: the one at `address`, or with None one of this machine with `workers` processes.
    No more than four items a worker are in flight. What `work` reads and writes must be reachable from all machines."""

    def __init__(self, workers: int | None, address: str | None) -> None:
        self.workers, self.address = workers, address

    def map(self, work: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
        if not items:
            return

        with ray_cluster(self.address, self.workers or cores(), "compute.engine") as ray:
            workers = self.workers or int(ray.cluster_resources().get("CPU", 1))
            do = ray.remote(num_cpus=1, max_retries=2)(_work).remote
            shared, waiting = ray.put(work), iter(items)
            running = [do(shared, item) for item in islice(waiting, 4 * workers)]
            while running:
                (done,), running = ray.wait(running, num_returns=1)
                running += [do(shared, item) for item in islice(waiting, 1)]
                yield _result(ray, done)


def _work(work: Callable[[In], Out], item: In) -> Out:
    return work(item)


def _result(ray: Any, done: Any) -> Any:
    """A task's result, or its error as it was raised there."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ShardlineError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise DataError(
            "A worker process died three times at the same item, most often for want of memory: lower compute.workers, "
            "or cut large source files into smaller ones. What was finished is kept; the same command goes on."
        ) from error


def choose_executor(compute: Compute, total_bytes: int) -> Executor:
    """The executor that `compute` asks for; `auto` takes processes from 256 MiB of input on."""
    if compute.engine == "ray":
        return RayExecutor(compute.workers, expand("compute.ray", compute.ray))
    return choose_pool(compute, total_bytes)


def choose_pool(compute: Compute, total_bytes: int) -> PoolExecutor:
    """The same on this machine, where something else spreads the items over machines: processes stand in for Ray."""
    workers = compute.workers or cores()
    processes = compute.engine in ("processes", "ray") or (compute.engine == "auto" and total_bytes >= _MUCH)
    return PoolExecutor(workers, processes=processes and workers > 1)


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
