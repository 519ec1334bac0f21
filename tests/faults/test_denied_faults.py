"""What may not be read isn't missing: each backend tells `not there` from `not allowed` and `not now`."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.faulty_proxy import FaultyProxy, s3_error
from support.servers import S3

from storage.errors import LakeError
from storage.lake import StoredObject, Zone
from storage.named import NamedFiles
from storage.objects.retries import RangeReader

pytestmark = pytest.mark.xdist_group("s3")

DATA = b"what the lake holds"
TIMEOUT = 0.5  # seconds, of `compute.lake_timeout`
#: Every question that is asked of a zone about the object `stored`.
ASK: dict[str, Callable[[Zone, StoredObject], object]] = {
    "exists": lambda zone, stored: zone.exists(stored.path, stored.bytes),
    "read": lambda zone, stored: zone.read(stored.path, stored.digest),
    "verify": lambda zone, stored: zone.verify(stored.path, stored.digest),
    "range": lambda zone, stored: zone.reader.read_into(stored.path, 0, bytearray(4)),
    "size": lambda zone, stored: zone.reader.size(stored.path),
    "sizes": lambda zone, stored: zone.sizes(),
    "named": lambda zone, stored: NamedFiles(zone).read(stored.path),
    "paths": lambda zone, stored: NamedFiles(zone).paths(),
}
PLAIN = [name for name in ASK if name not in ("sizes", "paths")]  # a web server lists nothing
SAYS = {401: "no permission", 403: "no permission", 500: "no progress", 503: "no progress"}


def refuses(zone: Zone, stored: StoredObject, ask: str, says: str) -> None:
    with pytest.raises(LakeError, match=says) as caught:
        ASK[ask](zone, stored)
    assert "missing" not in str(caught.value)


# -- the web -----------------------------------------------------------------------------------------------------------


class Web(ThreadingHTTPServer):
    """Answers with `status`; with DATA where that is 200."""

    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        """Not to the test's output."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        body = DATA if self.server.status == 200 else b"none"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def web_zone(web: Web, tmp_path: Path) -> Zone:
    return Zone(tmp_path, f"http://127.0.0.1:{web.server_port}/lake", timeout=TIMEOUT)


@pytest.fixture
def of_the_web() -> StoredObject:
    return Zone(Path("unused"), "memory://denied").publish(DATA, ".bin")


@pytest.mark.parametrize("ask", PLAIN)
@pytest.mark.parametrize("status", SAYS)
def test_a_web_server_that_refuses(web: Web, web_zone: Zone, of_the_web: StoredObject, ask: str, status: int) -> None:
    ASK[ask](web_zone, of_the_web)
    web.status = status
    refuses(web_zone, of_the_web, ask, SAYS[status])


@pytest.mark.parametrize("ask", PLAIN)
def test_a_web_server_that_is_away(web: Web, of_the_web: StoredObject, tmp_path: Path, ask: str) -> None:
    refuses(Zone(tmp_path, "http://127.0.0.1:1/lake", timeout=TIMEOUT), of_the_web, ask, "no progress")


def test_a_web_server_that_has_no_such_object(web: Web, web_zone: Zone, of_the_web: StoredObject) -> None:
    web.status = 404
    assert not web_zone.exists(of_the_web.path, of_the_web.bytes)
    for ask in ("read", "verify", "range"):
        with pytest.raises(LakeError, match="an object that the manifest names is missing"):
            ASK[ask](web_zone, of_the_web)
    with pytest.raises(FileNotFoundError):
        web_zone.reader.size(of_the_web.path)


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy.before(s3.endpoint) as proxy:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        yield proxy


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (401, "Unauthorized"), (503, "SlowDown")])
def test_an_s3_server_that_refuses(proxy: FaultyProxy, tmp_path: Path, ask: str, status: int, code: str) -> None:
    zone = Zone(tmp_path, f"s3://lake/denied-{tmp_path.name}", timeout=TIMEOUT)
    RangeReader(str(zone.url)).put((stored := Zone(tmp_path / "x").publish(DATA, ".bin")).path, DATA)
    ASK[ask](zone, stored)
    proxy.answer(lambda _: s3_error(status, code))
    refuses(zone, stored, ask, SAYS[status])


# -- a file system -----------------------------------------------------------------------------------------------------


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """`folder` is nobody's but its owner's, and this process is not root."""
    before = os.geteuid()
    folder.chmod(0)
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
        folder.chmod(0o755)


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, ask: str, where: str) -> None:
    zone = Zone(tmp_path / "zone", None if where == "beside" else str(tmp_path / "lake"), timeout=TIMEOUT)
    stored = zone.publish(DATA, ".bin")
    assert zone.root is not None
    ASK[ask](zone, stored)
    with forbidden(zone.root):
        refuses(zone, stored, ask, "cannot be read|no permission")


@pytest.mark.parametrize("ask", ["sizes", "paths", "size"])
def test_a_file_system_that_refuses(tmp_path: Path, ask: str) -> None:
    """Through its fsspec driver, as sftp and smb are."""
    (tmp_path / "lake" / "objects").mkdir(parents=True)
    (tmp_path / "lake" / "objects" / "a").write_bytes(DATA)
    reader = RangeReader(str(tmp_path / "lake"), timeout=TIMEOUT)
    asks = {"sizes": lambda: reader.sizes("objects"), "paths": reader.paths, "size": lambda: reader.size("objects/a")}
    assert asks[ask]()
    with forbidden(tmp_path / "lake"), pytest.raises(LakeError, match="no permission"):
        asks[ask]()
    assert RangeReader(str(tmp_path / "none")).sizes("objects") == RangeReader(str(tmp_path / "none")).paths() == {}


def test_a_manifest_that_may_not_be_read(tmp_path: Path) -> None:
    zone = Zone(tmp_path / "zone")
    zone.publish(DATA, ".bin")
    with forbidden(zone.folder):
        for ask in (zone.manifest, lambda: zone.complete):
            with pytest.raises(LakeError, match=r"manifest\.arrow: .*cannot be read"):
                ask()
