"""Processes that fork while another thread is at work: the child has no such thread, and must not wait for it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from pipelines.streaming import Meter
from storage.objects.retries import RangeReader

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread holds `lock`."""
    inside, over = Event(), Event()

    def hold() -> None:
        with lock:
            inside.set()
            over.wait()

    thread = Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(10)
        yield
    finally:
        over.set()
        thread.join()


def status_of_child(work: Callable[[], None]) -> int:
    """How a forked child ends that does `work`: with 0 when it was right, with SIGALRM when it hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_meter_counts_on_in_a_child() -> None:
    meter = Meter()
    meter.count(batches=1)

    def work() -> None:
        with meter.time("gather"):
            meter.count(batches=1)
        assert meter.snapshot().batches == 2

    with held(meter._lock):
        assert status_of_child(work) == 0
    meter.count(batches=1)
    assert meter.snapshot().batches == 2


def test_a_reader_reads_on_in_a_child(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"hello")
    reader = RangeReader(f"file://{tmp_path}")
    assert reader.size("object") == 5

    def work() -> None:
        place = bytearray(5)
        reader.read_into("object", 0, place)
        assert place == b"hello"

    with held(reader._lock):
        assert status_of_child(work) == 0
