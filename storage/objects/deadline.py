"""A hard end for what waits on the network: per-call time-outs don't see a trickle, which always brings a little."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IDLE = 5.0  # seconds without a block after which the thread ends


class Deadline:
    """Calls a function when a block takes longer than it may, from one thread for all blocks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: dict[object, tuple[float, Callable[[], None]]] = {}
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def limit(self, seconds: float, late: Callable[[], None]) -> Iterator[None]:
        """Call `late` once if the block isn't over in `seconds`; never after it is."""
        key, end = object(), time.monotonic() + seconds
        with self._changed:
            self._limits[key], self._closed = (end, late), False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shardline-watch", daemon=True)
                self._thread.start()
            elif end < self._next:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._limits.pop(key, None)

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                self._next = min((end for end, _ in self._limits.values()), default=float("inf"))
                now = time.monotonic()
                if self._next > now:
                    told = self._changed.wait(min(self._next - now, _IDLE))
                    if not told and not self._limits:
                        break  # another begins when it is needed
                    continue
                for key in [key for key, (end, _) in self._limits.items() if end <= now]:
                    self._limits.pop(key)[1]()
            self._thread = None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
