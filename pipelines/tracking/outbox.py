"""What is on its way to MLflow: sent by one background thread, kept while MLflow is away, bounded in memory.

MLflow's own asynchronous queue (`synchronous=False`) sends one request for each call, from ten threads, forgets
what failed, and drains at exit however long a dead server takes. Here points are merged, all stays in order and is
sent again after an outage, and closing during one takes at most one time-out (two where a file comes first).

Files go to a store of their own, which may fail while MLflow works (a bucket without credentials, a folder that is not
writable): then all else overtakes them.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.tracking.store import cause, transient, warn

if TYPE_CHECKING:
    from mlflow.entities import Metric

BATCH = 1000  # metric points in a request: MLflow's limit
CAPACITY = 200_000  # points and calls that wait, at most; then the oldest are dropped
PAUSE = 2.0  # seconds that points wait for company: a request costs the processor 10 ms besides its points
RETRY_FIRST, RETRY_LAST = 1.0, 30.0  # seconds between attempts during an outage
FILE_TRIES = 5  # of a file, while the rest gets through


@dataclass
class Call:
    """A request other than metric points; `what` names it in messages; `file`: of artifacts. `tries` that failed, and
    how many deliveries there had been at the first."""

    what: str
    send: Callable[[], object]
    file: bool = False
    tries: int = 0
    since: int = 0


@dataclass
class Outbox:
    """`send_points` delivers a list of points; `where` names the store in messages."""

    send_points: Callable[[list["Metric"]], object]
    where: str
    lost: int = field(default=0, init=False)
    _items: deque["Metric | Call"] = field(default_factory=deque, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _closing: bool = field(default=False, init=False)
    _hurry: bool = field(default=False, init=False)
    _busy: bool = field(default=False, init=False)
    _away: bool = field(default=False, init=False)
    _delivered: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def put(self, *items: "Metric | Call") -> None:
        with self._changed:
            if self._closing:
                return
            self._items.extend(items)
            while len(self._items) > CAPACITY:
                self._items.popleft()
                self.lost += 1
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything is delivered; False when that takes over `timeout` seconds or MLflow is away."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._away or not (self._items or self._busy), timeout)
            self._hurry = False
            return done and not self._away

    def close(self) -> None:
        """Deliver what waits; during an outage try once more, then give up and say how much is lost."""
        with self._changed:
            self._closing = self._hurry = True
            self._changed.notify_all()
        self._thread.join()
        if self.lost:
            warn(f"MLflow: {self.lost} metric points or entries could not be recorded at {self.where}.")

    # -- the thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            delay = RETRY_FIRST
            while not self._deliver(batch):
                with self._changed:
                    if self._overtaken(batch[0]):
                        break
                    if self._closing:
                        self.lost += len(batch) + len(self._items)
                        self._items.clear()
                        break
                    self._changed.wait_for(lambda: self._closing, delay)
                delay = min(2 * delay, RETRY_LAST)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _overtaken(self, head: "Metric | Call") -> bool:
        """Put a file that does not get through behind what waits, unless MLflow itself is away."""
        if not (isinstance(head, Call) and head.file and self._items) or self._away:
            return False
        self._items.append(head)
        return True

    def _fails_alone(self, file: Call) -> bool:
        """Note a failure; whether it is the file's, since the rest got through meanwhile."""
        file.since = file.since if file.tries else self._delivered
        file.tries += 1
        return file.tries >= (2 if self._closing else FILE_TRIES) and self._delivered > file.since

    def _next(self) -> "list[Metric | Call] | None":
        """One call, or the points up to the next call; None when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closing)
            if not self._items:
                return None
            if not isinstance(self._items[0], Call):
                self._changed.wait_for(lambda: self._hurry or len(self._items) >= BATCH, PAUSE)
            batch = [self._items.popleft()]
            while self._items and len(batch) < BATCH and not (isinstance(batch[0], Call) or self._call_is_next()):
                batch.append(self._items.popleft())
            self._busy = True
            return batch

    def _call_is_next(self) -> bool:
        return isinstance(self._items[0], Call)

    def _deliver(self, batch: "list[Metric | Call]") -> bool:
        """Send; False when it should be tried again. What MLflow refuses for good is dropped, and said."""
        head = batch[0]
        try:
            if isinstance(head, Call):
                head.send()
            else:
                self.send_points([point for point in batch if not isinstance(point, Call)])
        except Exception as error:  # whatever MLflow raises, the work goes on
            file = isinstance(head, Call) and head.file
            if not transient(error) or (isinstance(head, Call) and file and self._fails_alone(head)):
                what = head.what if isinstance(head, Call) else "metrics"
                warn(f"MLflow at {self.where} refused {what}: {cause(error)}. The work goes on without it.")
                return True
            if not self._away and not file:
                self._away = True
                warn(
                    f"MLflow at {self.where} cannot be reached: {cause(error)}. The work goes on; what is "
                    "logged is kept and sent when it answers again (setting: MLFLOW_TRACKING_URI)."
                )
            with self._changed:
                self._changed.notify_all()
            return False
        self._delivered += 1
        if self._away:
            self._away = False
            warn(f"MLflow at {self.where} answers again.")
        return True
