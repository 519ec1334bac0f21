"""One Redis for all threads of a process: connected when first used, limited in time, behind a circuit breaker."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.cache.hot.address import Client, check, connect
from storage.cache.hot.breaker import Breaker
from storage.cache.hot.eviction import warn_of_eviction
from storage.objects.deadline import Deadline
from storage.redact import mask

_log = logging.getLogger(__name__)


class Unavailable(Exception):
    """Redis cannot be used now; the caller does without it."""


class Link:
    """`use` gives the client for one exchange. Whatever goes wrong in it opens the breaker and becomes Unavailable,
    told in one line when an outage begins and one when it ends."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = check(url), timeout
        self.name = f"hot cache {mask(url).split('?')[0]}"
        self._lock, self._connecting = threading.Lock(), threading.Lock()
        self._breaker = Breaker()
        self._client: Client = None
        self._cut: Callable[[], None] = lambda: None
        self._deadline = Deadline()
        self._asked = False  # what the server does when it is full

    @property
    def open(self) -> bool:
        """Whether Redis is being left alone now."""
        return self._breaker.state == "open" and time.monotonic() < self._breaker.until

    @contextmanager
    def use(self, extra: float = 0.0) -> Iterator[Client]:
        """The client, for an exchange of at most `timeout` + `extra` seconds: then its connections are cut off, however
        slowly they trickle. Raises Unavailable, at once while the breaker is open."""
        with self._lock:
            if not self._breaker.allows(time.monotonic()):
                raise Unavailable
        begun = time.monotonic()
        try:
            with self._deadline.limit(self.timeout + extra, self._cut_off):
                yield self._connected()
        except Unavailable:
            raise
        except Exception as error:  # redis-py's, the socket's, or what a cut connection makes of itself
            self._failed(error, time.monotonic() - begun)
            raise Unavailable from error
        with self._lock:
            back = self._breaker.succeeded()
        if back:
            _log.warning("%s answers again", self.name)

    def _connected(self) -> Client:
        with self._connecting:
            if self._client is None:
                if self.open:  # another thread has just tried, while this one waited
                    raise Unavailable
                self._client, self._cut = connect(self.url, self.timeout)
                if not self._asked:
                    warn_of_eviction(self._client, self.name)
                    self._asked = True
            return self._client

    def _failed(self, error: Exception, seconds: float) -> None:
        with self._lock:
            first = self._breaker.failed(time.monotonic())
        if first:
            _log.warning(
                "%s: %s: %s (after %.2f s). The lake is read instead until it answers again; see cache.hot in "
                "params.yaml.",
                self.name, type(error).__name__, mask(str(error)), seconds,
            )  # fmt: skip
        self._cut_off()
        self._client = None

    def _cut_off(self) -> None:
        try:
            self._cut()
        except Exception as error:
            _log.debug("%s: while cutting connections off: %s", self.name, error)

    def close(self) -> None:
        self._cut_off()
        self._client = None
        self._deadline.close()
