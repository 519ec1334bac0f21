"""Ranges of S3 objects from the socket straight into their place.

A client that makes bytes objects of what arrives, which are then copied, takes longer for it than a near server does to
send it (docs/decisions/0014). So the body of an answer is read by `http.client` into the caller's memory. This is for
the plain case: proxies and anonymous access are left to obstore.
"""

import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from storage.objects.deadline import Deadline

_PIECE = 256 << 10  # bytes read at a time: after each one the caller is told
_SILENCE = 1 / 5  # of the limit: without a byte for so long, the first attempt is given up
_LONGER = 1.5  # times as long waits each further one
_IDLE = 64  # connections, and signatures, kept
_FRESH = 60.0  # seconds a signature is used; S3 takes it for 15 minutes
_OLD = 20.0  # seconds without use after which a server may have closed a connection

Came = Callable[[int], None]
Key = Mapping[str, Any]  # access_key_id, secret_access_key, token, expires_at


class Answer(OSError):
    """What the server said instead of the range."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status code: {status} {body.decode(errors='replace')}")
        self.status = status


class S3Reads:
    """GETs of ranges, signed by AWS' signature version 4, over connections that are kept.

    `find(path)` is an object's URL, `credentials()` the key of now. A range is to be there within `limit` seconds: then
    its connection is cut, however slowly it trickles. One on which nothing comes for a fifth of that is given up
    before: a server that was restarted, or a balancer before it, may have forgotten the request, and answer a new one
    at once. Each further attempt waits longer, so that a server which is slow to answer is heard, too. Safe for
    threads, not for a fork.
    """

    def __init__(
        self,
        find: Callable[[str], str],
        credentials: Callable[[], Key],
        region: str,
        context: ssl.SSLContext | None,
        limit: float,
    ) -> None:
        self._find, self._credentials, self._region, self._context = find, credentials, region, context
        self._limit = limit
        self._idle: deque[tuple[float, str, HTTPConnection]] = deque()
        weakref.finalize(self, _close, self._idle)
        self._key: Key | None = None
        self._signatures: dict[str, tuple[float, dict[str, str]]] = {}  # when, and the headers, by URL
        self._lock = threading.Lock()
        self._deadline = Deadline()

    def read_into(self, path: str, start: int, out: memoryview, came: Came, failures: int = 0) -> None:
        """Fill `out` from byte `start` of the object on, or as far as it goes; `came(n)` as n bytes more are there.
        `failures`: attempts before this one that brought nothing.

        Raises Answer where the server gives none, OSError and HTTPException where the connection breaks.
        """
        url = self._find(path)
        place = urlsplit(url)
        connection = self._connection(place.scheme, place.netloc)
        span, whole = f"bytes={start}-{start + len(out) - 1}", False
        try:
            sock = connection.sock
            _give_up_after(sock, min(self._limit, self._limit * _SILENCE * _LONGER**failures))
            with self._deadline.limit(self._limit, lambda: _cut(sock)):
                connection.request("GET", place.path, headers={**self._signed(url), "Range": span})
                response = connection.getresponse()
                if response.status != 206:
                    raise Answer(response.status, response.read(64 << 10))
                _receive(response, out, came)
            whole = response.isclosed() and not response.will_close
        finally:
            if whole and len(self._idle) < _IDLE:
                self._idle.append((time.monotonic(), place.netloc, connection))
            else:
                connection.close()

    def _connection(self, scheme: str, host: str) -> HTTPConnection:
        """One that is idle, or a new one."""
        while self._idle:
            try:
                since, to, connection = self._idle.pop()  # the one that was used last
            except IndexError:
                break
            if to == host and time.monotonic() - since < _OLD and not _has_ended(connection.sock):
                return connection
            connection.close()
        wait = min(self._limit, 5)
        made = (
            HTTPSConnection(host, timeout=wait, context=self._context)
            if scheme == "https"
            else HTTPConnection(host, timeout=wait)
        )
        made.connect()
        made.sock.settimeout(None)  # the watch is the limit, and saves a poll before each read
        return made

    def _signed(self, url: str) -> dict[str, str]:
        """Headers for GETs of `url`. The range isn't signed, so that those of an object share the signature."""
        now = time.monotonic()
        with self._lock:
            made, headers = self._signatures.get(url, (-_FRESH, {}))
            if now - made < _FRESH:
                return headers
            if self._key is None or self._key.get("expires_at", _NEVER) < datetime.now(UTC):
                self._key = self._credentials()
            key = self._key
        headers = _sign(url, key, self._region)
        with self._lock:
            if len(self._signatures) >= _IDLE:
                self._signatures.clear()
            self._signatures[url] = now, headers
        return headers


def _sign(url: str, key: Key, region: str) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    owner = Credentials(key["access_key_id"], key["secret_access_key"], key.get("token"))
    request = AWSRequest("GET", url)
    S3SigV4Auth(owner, "s3", region).add_auth(request)
    return dict(request.headers.items())


_NEVER = datetime.max.replace(tzinfo=UTC)


def proxied(url: str) -> bool:
    """Whether the environment names a proxy for it."""
    place = urlsplit(url)
    proxies = getproxies()
    named = place.scheme in proxies or "all" in proxies
    return named and not proxy_bypass(place.hostname or "")


def tls_context(http: Mapping[str, Any]) -> ssl.SSLContext:
    """For obstore's options of a client: certificates of one's own, or none that are checked."""
    context = ssl.create_default_context()
    if "root_certificate" in http:
        context.load_verify_locations(cadata=http["root_certificate"].decode())
    if http.get("allow_invalid_certificates"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _receive(response: HTTPResponse, out: memoryview, came: Came) -> None:
    end, at = len(out) if response.length is None else min(len(out), response.length), 0
    while at < end:
        count = response.readinto(out[at : min(at + _PIECE, end)])
        if not count:
            raise ConnectionError(f"the connection broke off, or fell silent, after {at} of {end} bytes")
        at += count
        came(count)


def _close(idle: deque[tuple[float, str, HTTPConnection]]) -> None:
    while idle:
        idle.pop()[2].close()


def _give_up_after(sock: socket.socket, seconds: float) -> None:
    """Let the kernel end each wait for bytes: unlike Python's time-outs, that costs no poll before each read."""
    whole = int(seconds)
    limit = struct.pack("ll", whole, round((seconds - whole) * 1e6) or 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not an SSLSocket's own, which isn't for another thread


def _has_ended(sock: socket.socket) -> bool:
    """Whether an idle connection has something to read, which can only be its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
