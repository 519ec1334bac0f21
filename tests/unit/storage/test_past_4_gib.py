"""Offsets past 4 GiB: a sparse file of 6 GiB, read from the disk and from servers that hand it out by ranges."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import LakeError
from storage.objects.retries import RangeReader

SIZE = (6 << 30) + 5
MARKS = {0: b"begin", (1 << 32) - 3: b"across", (5 << 30) + 1: b"beyond", SIZE - 3: b"end"}


class Ranges(BaseHTTPRequestHandler):
    """Serves `file` by ranges, whatever the path, as a web server and an S3 server do."""

    protocol_version = "HTTP/1.1"
    file: Path

    def do_HEAD(self) -> None:
        self._send(200, b"", SIZE)

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        if first >= SIZE:
            return self._send(416, b"", 0)
        last = min(last, SIZE - 1)
        with self.file.open("rb") as file:
            file.seek(first)
            return self._send(206, file.read(last + 1 - first), last + 1 - first, f"bytes {first}-{last}/{SIZE}")

    def _send(self, status: int, body: bytes, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 00:00:00 GMT")
        self.send_header("ETag", '"one"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=["disk", "http", "s3"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RangeReader]:
    file = tmp_path / "huge.bin"
    with file.open("wb") as target:
        for at, mark in MARKS.items():
            target.seek(at)
            target.write(mark)
    assert file.stat().st_size == SIZE
    assert file.stat().st_blocks * 512 < 1 << 20  # sparse
    if request.param == "disk":
        yield RangeReader(str(tmp_path))
        return
    handler = type("Handler", (Ranges,), {"file": file})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        keys = {"endpoint_url": address, "key": "k", "secret": "s"}
        yield RangeReader(address) if request.param == "http" else RangeReader("s3://bucket/prefix", keys)
        server.shutdown()


def test_ranges_past_4_gib(reader: RangeReader) -> None:
    assert reader.size("huge.bin") == SIZE
    for at, mark in MARKS.items():
        out = bytearray(len(mark))
        reader.read_into("huge.bin", at, out)
        assert out == mark[: SIZE - at]
    out = np.ones((9 << 20) + 1, np.uint8)  # several ranges, around 4 GiB
    start = (1 << 32) - (4 << 20)
    reader.read_into("huge.bin", start, out)
    assert out.nonzero()[0].tolist() == [*range((4 << 20) - 3, (4 << 20) + 3)]
    with pytest.raises(LakeError, match=r"huge\.bin: the object is shorter"):
        reader.read_into("huge.bin", SIZE - 1, bytearray(2))
