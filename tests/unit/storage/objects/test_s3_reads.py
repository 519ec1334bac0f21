"""Ranges straight from the socket, of a real HTTP server that does as a test asks."""

import os
import re
import select
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.servers import Proxy, certificate

from storage.objects.s3_reads import Answer, S3Reads, proxied, tls_context

DATA = os.urandom(3 << 20)
KEY = {"access_key_id": "AKEXAMPLE", "secret_access_key": "secret", "token": "a+token/="}
LIMIT = 0.5  # seconds, of a range that trickles


class Server(ThreadingHTTPServer):
    """Serves ranges of DATA. `heads` are those of the requests, `connections` counts; a path names what goes wrong."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heads: list[dict[str, str]] = []
        self.connections = 0
        self.going = threading.Event()  # set when a trickle may end

    def handle_error(self, *_: object) -> None:
        """Clients cut their connections here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: object) -> None:
        """Not to the test's output."""

    def do_GET(self) -> None:
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/denied":
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        start, end = map(int, re.findall(r"\d+", self.headers["Range"]))
        body = DATA[start : end + 1]
        if self.path == "/slow-head":
            self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Slow: ")
            self._trickle()
            return
        if self.path == "/slow-body":
            self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n" % len(body))
            self._trickle()
            return
        self._send(206, body[:-100] if self.path == "/cut" else body, len(body))
        self.close_connection = self.path in ("/cut", "/last")

    def _send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _trickle(self) -> None:
        while not self.server.going.wait(0.02):
            self.wfile.write(b"x")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.going.set()
        server.shutdown()
        thread.join()


def reads_of(server: Server, limit: float) -> S3Reads:
    find = f"http://127.0.0.1:{server.server_port}/{{}}".format
    return S3Reads(find, lambda: KEY, "eu-west-1", None, limit)


@pytest.fixture
def reads(server: Server) -> S3Reads:
    return reads_of(server, 30)


def fetch(reads: S3Reads, path: str, start: int, stop: int) -> tuple[bytes, list[int]]:
    out, came = bytearray(stop - start), list[int]()
    reads.read_into(path, start, memoryview(out), came.append)
    return bytes(out[: sum(came)]), came


def test_ranges_land_in_their_places_over_one_connection(server: Server, reads: S3Reads) -> None:
    for start, stop in ((0, len(DATA)), (5, 6), (1 << 20, (2 << 20) + 3)):
        found, came = fetch(reads, "o", start, stop)
        assert found == DATA[start:stop]
        assert max(came) <= 256 << 10
    assert server.connections == 1


def test_a_range_past_the_end_is_as_long_as_it_goes(reads: S3Reads) -> None:
    assert fetch(reads, "o", len(DATA) - 7, len(DATA) + 100)[0] == DATA[-7:]


def test_requests_are_signed_as_botocore_signs_them(server: Server, reads: S3Reads) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    fetch(reads, "a%20b/c", 10, 20)
    fetch(reads, "a%20b/c", 30, 40)
    head, again = server.heads
    assert (head["range"], again["range"]) == ("bytes=10-19", "bytes=30-39")
    assert head["authorization"] == again["authorization"]
    assert head["x-amz-security-token"] == KEY["token"]
    url = f"http://127.0.0.1:{server.server_port}/a%20b/c"
    request = AWSRequest("GET", url)
    auth = S3SigV4Auth(Credentials(KEY["access_key_id"], KEY["secret_access_key"], KEY["token"]), "s3", "eu-west-1")
    auth.add_auth(request)
    if request.headers["X-Amz-Date"] == head["x-amz-date"]:  # else a second has passed: the names must do
        assert request.headers["Authorization"] == head["authorization"]
    assert request.headers["Authorization"].split(", ")[1] == head["authorization"].split(", ")[1]


def test_what_the_server_says_instead_is_told(server: Server, reads: S3Reads) -> None:
    with pytest.raises(Answer, match=r"status code: 403 .*<Code>AccessDenied</Code>"):
        fetch(reads, "denied", 0, 10)
    assert fetch(reads, "o", 0, 10)[0] == DATA[:10]
    assert server.connections == 2


@pytest.mark.parametrize("path", ["slow-head", "slow-body"])
def test_a_trickle_is_cut(server: Server, path: str) -> None:
    reads = reads_of(server, LIMIT)
    begun = time.monotonic()
    with pytest.raises((OSError, HTTPException)):
        fetch(reads, path, 0, 1000)
    assert LIMIT <= time.monotonic() - begun < LIMIT + 2


def test_a_connection_that_broke_off_or_was_closed_is_not_used_again(server: Server, reads: S3Reads) -> None:
    with pytest.raises(ConnectionError, match="after 1900 of 2000 bytes"):
        fetch(reads, "cut", 0, 2000)
    assert fetch(reads, "last", 0, 10)[0] == DATA[:10]  # after it the server closes
    _, _, connection = reads._idle[-1]
    assert select.select([connection.sock], [], [], 60)[0], "the connection's end"
    assert fetch(reads, "o", 0, 10)[0] == DATA[:10]
    assert server.connections == 3


def test_certificates_are_checked(server: Server, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    proxy = Proxy(server.server_port, (cert, key))
    try:

        def reads(http: dict[str, object]) -> S3Reads:
            find = f"https://localhost:{proxy.port}/{{}}".format
            return S3Reads(find, lambda: KEY, "x", tls_context(http), 5)

        for http in ({"root_certificate": cert.read_bytes()}, {"allow_invalid_certificates": True}):
            assert fetch(reads(http), "o", 0, len(DATA))[0] == DATA
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(reads({}), "o", 0, 10)
    finally:
        proxy.close()


def test_proxies_of_the_environment_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not proxied("http://s3.example/x")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert proxied("http://s3.example/x")
    monkeypatch.setenv("no_proxy", "example")
    assert not proxied("http://s3.example/x")
