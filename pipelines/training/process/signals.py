"""SIGINT and SIGTERM as a wish to stop, which the loop grants at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from storage.errors import Interrupted

#: A second signal after so many seconds doesn't wait for the step to end; before, it is the same Ctrl-C, which a
#: terminal and a parent process may both deliver.
IMPATIENT = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`signum`: of the first signal that this process got, or None."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at = 0.0

    def __bool__(self) -> bool:
        return self.signum is not None

    def note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._at = signum, monotonic()
        elif monotonic() - self._at > IMPATIENT:
            raise Interrupted("Stopped at once. The same command goes on from the last checkpoint.", signum)


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[StopRequest]:
    """Inside, signals only set the request. Outside the main thread, where Python can't, nobody sets it."""
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.note) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
