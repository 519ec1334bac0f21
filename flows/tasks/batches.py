"""The data stages as Prefect tasks: plan, then the same `work` over batches of items, then commit.

Items go in batches, so that a million files don't become a million task runs. Results are journalled as they come, as
in `shardline STAGE`: a retry, or another run by either way, works only on what is left.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import task, unmapped
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.tasks.steps import RETRY, STEP, open_recipe, record
from pipelines.ingest import data_stage
from pipelines.ingest.stage import DataStage, Item, Journal, Result, at_work, commit, journal_of, pending
from pipelines.reproduce.writer import exclusive, refuse_changed_params
from pipelines.runtime.executors import PoolExecutor, choose_pool

TASKS = 4  # task runs of a stage for each worker, so that no worker waits long for another's last one


T = TypeVar("T")


def whole(value: T) -> T:
    """Hand `value` to a task as it is: Prefect would walk through each item, and copy it, to look for futures."""
    return cast(T, quote(value))


class Ledger:
    """The results of a stage, shared by its tasks (threads of this process): known by key, and journalled."""

    def __init__(self, known: dict[str, Result], journal: Journal) -> None:
        self.known, self._journal, self._lock = known, journal, threading.Lock()
        self.stopped = threading.Event()

    def __call__(self, result: Result) -> None:
        with self._lock:
            self.known[result.key] = result
            self._journal(result)


def run_data_stage(name: str, recipe: str) -> dict[str, Any]:
    """Run data stage `name` of a recipe and record it. Returns what it did, with the version of its zone."""
    ws = open_recipe(recipe)
    with exclusive(ws):
        stage, journal = data_stage(name, ws), journal_of(ws, name)
        with at_work(stage, journal):
            items = plan(whole(stage))
            known = pending(stage, items, journal)
            todo = [item for item in items if item.key not in known]
            executor = choose_pool(ws.params.compute, sum(item.bytes for item in todo))
            with Journal(journal) as note:
                ledger = Ledger(known, note)
                work_all(stage, todo, ledger, executor)
            summary = finish(whole(stage), whole(items), whole(ledger), journal, len(todo))
        refuse_changed_params(ws, name)
        record(recipe, name)
    return summary


@task(name="plan", **STEP, **RETRY)
def plan(stage: DataStage) -> list[Item]:
    """The stage's items."""
    items = stage.plan()
    get_run_logger().info("%s: %d items", stage.name, len(items))
    return items


def work_all(stage: DataStage, todo: Sequence[Item], ledger: Ledger, executor: PoolExecutor) -> None:
    """Map `work_batch` over `todo`, on as many threads as the executor has workers. When a batch fails for good the
    others are worked to their end, then its error is raised."""
    if not todo:
        return
    parts = batches(todo, TASKS * executor.workers)
    runner: ThreadPoolTaskRunner[int] = ThreadPoolTaskRunner(max_workers=executor.workers)
    with runner:
        about = {"stage": unmapped(whole(stage)), "ledger": unmapped(whole(ledger))}
        try:
            futures = runner.map(
                work_batch, {**about, "items": whole(parts), "processes": unmapped(executor.processes)}
            )
            futures.wait()
        finally:
            ledger.stopped.set()  # cancelled: tasks leave after the items at hand
        futures.result()


def batches(items: Sequence[Item], most: int) -> list[list[Item]]:
    """At most `most` batches, dealt out in turn so that neighbours, which are often alike in size, are spread."""
    count = min(most, len(items))
    return [list(items[start::count]) for start in range(count)]


@task(name="work", **STEP, **RETRY)
def work_batch(stage: DataStage, items: list[Item], ledger: Ledger, processes: bool) -> int:
    """Work the items of a batch that have no result yet: in this thread, or in a process of its own when there is much
    data. Returns how many."""
    todo = [item for item in items if item.key not in ledger.known]
    for result in PoolExecutor(1, processes=processes).map(stage.work, todo):
        ledger(result)
        if ledger.stopped.is_set():
            break
    return len(todo)


@task(name="commit", **STEP)
def finish(stage: DataStage, items: list[Item], ledger: Ledger, journal: Path, worked: int) -> dict[str, Any]:
    """Write the zone's manifest."""
    summary = commit(stage, items, ledger.known, journal, worked=worked)
    get_run_logger().info("%s", summary)
    return {
        "stage": summary.stage,
        "items": summary.items,
        "worked": summary.worked,
        "quarantined": summary.quarantined,
        "duplicates": summary.duplicates,
        "version": summary.manifest.digest,
    }
