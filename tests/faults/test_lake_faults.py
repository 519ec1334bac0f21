"""A lake that fails for real: an S3 server behind a proxy that harms it, killed, and with damaged objects.

In each case the bytes are exact, or there is one LakeError (or DigestError) that names the object, within the time-out.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.faulty_proxy import FaultyProxy, s3_error
from support.servers import S3Machine, wait_for

from storage.atomic import write_atomically
from storage.errors import DigestError, LakeError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest
from storage.objects.retries import RangeReader, _Job

pytestmark = pytest.mark.xdist_group("s3")

TIMEOUT = 1.5  # seconds, of `compute.lake_timeout` where a fault lasts
SLACK = 2.0  # seconds: the machine is busy
DATA = np.random.default_rng(0).bytes(20 << 20)
RANGES = 5  # of 4 MiB, in which such an object is read


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Machine]:
    server = S3Machine(tmp_path_factory.mktemp("s3"))
    with server.stack:
        yield server


@pytest.fixture
def proxy(server: S3Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What this process takes for the S3 server."""
    with FaultyProxy(*server.place) as proxy:
        for name, value in server.s3.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        yield proxy


@pytest.fixture
def zone(proxy: FaultyProxy, tmp_path: Path) -> Zone:
    return Zone(tmp_path / "zone", "s3://lake/faults")


@pytest.fixture
def stored(zone: Zone) -> StoredObject:
    return zone.publish(DATA, ".bin")


OnRange = Callable[[int, int], None]


def fetch(zone: Zone, stored: StoredObject, on_range: OnRange | None = None, timeout: float = 20) -> bytes:
    """By a reader of its own, so that no connection is left of another test."""
    out = bytearray(stored.bytes)
    RangeReader(str(zone.url), timeout=timeout).read_into(stored.path, 0, out, on_range)
    return bytes(out)


def fails(zone: Zone, stored: StoredObject, *says: str, on_range: OnRange | None = None) -> None:
    """Reading fails within the time-out, with one error that names the object."""
    begun = time.monotonic()
    with pytest.raises(LakeError) as caught:
        fetch(zone, stored, on_range, TIMEOUT)
    assert time.monotonic() - begun < TIMEOUT + SLACK
    for text in (zone.describe(stored.path), *says):
        assert text in str(caught.value)


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_errors_that_pass_are_tried_again(
    proxy: FaultyProxy, zone: Zone, stored: StoredObject, status: int, code: str
) -> None:
    left = [s3_error(status, code)] * 5
    proxy.answer(lambda _: left.pop() if left else None)
    assert fetch(zone, stored) == DATA
    assert not left


def test_a_store_with_slow_connections_is_read_over_more_of_them(proxy: FaultyProxy, zone: Zone) -> None:
    data = np.random.default_rng(1).bytes(64 << 20)
    stored = zone.publish(data, ".bin")
    proxy.slow(40e6)
    reader, out = RangeReader(str(zone.url)), bytearray(len(data))
    for ranges in (8, 16):
        proxy.requests.clear()
        reader.read_into(stored.path, 0, out)
        assert len(proxy.requests) == ranges
        assert out == data


def test_ranges_one_after_the_other(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    """As they are read where a store is near, beside another object: in order, to the end or to an error."""
    reader, told, out = RangeReader(str(zone.url)), list[tuple[int, int]](), bytearray(stored.bytes)
    ranges = [(0, 8 << 20), (8 << 20, 16 << 20), (16 << 20, stored.bytes)]

    def some(start: int, stop: int) -> None:
        told.append((start, stop))
        if start >= limit:
            raise ValueError("enough")

    proxy.requests.clear()
    limit = stored.bytes
    job = _Job(reader, stored.path, 0, memoryview(out), some)
    job.fill_all(ranges, 1)
    assert out == DATA
    assert told == [(start, start + (1 << 20)) for start in range(0, stored.bytes, 1 << 20)]
    assert len(proxy.requests) == 3

    proxy.requests.clear()
    limit = 9 << 20
    with pytest.raises(ValueError, match="enough"):
        _Job(reader, stored.path, 0, memoryview(out), some).fill_all(ranges, 1)
    assert len(proxy.requests) == 2


def test_errors_that_last_are_named(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    """After few attempts: each pause but the first is a sixteenth of the time-out at least, and a quarter of it is left
    for the last attempt."""
    attempts = 2 + 3 / 4 * 16

    def refuse(kind: bytes) -> None:
        proxy.answer(lambda head: s3_error(503, "SlowDown") if head.startswith(kind) else None)
        proxy.requests.clear()

    refuse(b"GET")
    fails(zone, stored, "503", "compute.lake_timeout=1.5")
    assert RANGES < len(proxy.requests) <= RANGES * attempts
    for kind in (b"HEAD", b"PUT"):
        refuse(kind)
        with pytest.raises(LakeError, match=r"objects/.*503"):
            Zone(zone.folder, zone.url, timeout=TIMEOUT).publish(b"other", ".bin")
        assert 1 < sum(head.startswith(kind) for head in proxy.requests) <= attempts


def test_a_request_that_is_wrong_is_not_tried_again(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.answer(lambda _: s3_error(405, "MethodNotAllowed"))
    proxy.requests.clear()
    fails(zone, stored, "405", "MethodNotAllowed")
    assert len(proxy.requests) <= RANGES


def test_a_read_goes_on_where_its_connection_was_cut(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.cut(after=3 << 20, times=1000)
    proxy.requests.clear()
    passed = proxy.passed
    told: list[tuple[int, int]] = []
    assert fetch(zone, stored, lambda start, stop: told.append((start, stop))) == DATA
    assert len(proxy.requests) > 5
    assert proxy.passed - passed < 1.5 * len(DATA)
    assert sorted(told)[0][0] == 0
    assert [stop for _, stop in sorted(told)] == [*[start for start, _ in sorted(told)][1:], len(DATA)]


def test_connections_that_are_always_cut_are_named(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.cut(after=100, times=10_000)
    fails(zone, stored, "no progress")


def test_a_stall_is_cut_short(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.stall()
    before = proxy.connections

    def heal() -> None:
        wait_for(lambda: proxy.connections > before + RANGES, "new connections in place of the stalled ones")
        proxy.heal()

    healer = threading.Thread(target=heal)
    healer.start()
    assert fetch(zone, stored, timeout=4) == DATA
    healer.join()


def test_a_stall_that_lasts_is_named(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    told: list[int] = []

    def stall(start: int, stop: int) -> None:
        told.append(start)
        proxy.stall()

    proxy.slow(40 << 20)  # so that a range is not done at once
    fails(zone, stored, "no progress", on_range=stall)
    assert told


def test_a_trickle_is_no_progress(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.slow(20_000)
    fails(zone, stored, "no progress")


def test_a_refused_connection_is_named_and_one_that_comes_back_is_used(
    proxy: FaultyProxy, zone: Zone, stored: StoredObject, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.down()
    fails(zone, stored, "no progress")
    (warning,) = caplog.messages  # of its ranges, and many attempts
    assert stored.path in warning
    assert "trying on until compute.lake_timeout=1.5 s" in warning
    proxy.up()

    def drop(start: int, stop: int) -> None:
        if start == 0:
            proxy.down()
            proxy.up()

    assert fetch(zone, stored, drop) == DATA


@pytest.mark.parametrize("renewed", [True, False])
def test_credentials_that_expire_in_a_read_are_looked_for_anew(
    proxy: FaultyProxy,
    zone: Zone,
    stored: StoredObject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    renewed: bool,
) -> None:
    file = tmp_path / "credentials"
    write = "[default]\naws_access_key_id = {}key\naws_secret_access_key = {}secret\n"
    file.write_text(write.format("test", "test"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def expire(start: int, stop: int) -> None:
        if renewed:  # before the old ones end, and at once: another range may ask for them just now
            write_atomically(file, write.format("next", "next").encode())
        proxy.answer(lambda head: s3_error(400, "ExpiredToken") if b"Credential=testkey/" in head else None)
        proxy.cut(after=0, times=1)  # so that there must be one more request

    proxy.cut(after=3 << 20, times=3)
    if renewed:
        assert fetch(zone, stored, expire) == DATA
        assert any(b"Credential=nextkey/" in head for head in proxy.requests)
    else:
        with pytest.raises(LakeError, match=f"{stored.path}.*ExpiredToken"):
            fetch(zone, stored, expire)


def test_a_bit_flipped_on_the_way_is_read_again(proxy: FaultyProxy, zone: Zone, stored: StoredObject) -> None:
    proxy.flip()
    proxy.requests.clear()
    assert zone.read(stored.path, stored.digest, stored.bytes) == DATA
    assert sum(b"Range: bytes=0-" in head for head in proxy.requests) == 2


@pytest.mark.parametrize("how", ["none", "zstd"])
def test_damage_in_the_lake_is_named(zone: Zone, how: str) -> None:
    plain = DATA[: 1 << 20] + bytes(1 << 20)
    stored = zone.publish(plain, ".arrow", how)  # type: ignore[arg-type]
    assert stored.path.endswith(".zst") == (how == "zstd")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    kept = fs.cat_file(f"lake/faults/{stored.path}")
    for damaged in (kept[:-1], kept[: len(kept) // 2], kept[:100] + bytes([kept[100] ^ 4]) + kept[101:], b""):
        fs.pipe_file(f"lake/faults/{stored.path}", damaged)
        with pytest.raises(DigestError, match=f"{stored.path}.*{stored.digest}"):
            zone.read(stored.path, stored.digest)
        with pytest.raises(DigestError, match=f"{stored.path}.*{stored.digest}"):
            zone.verify(stored.path, stored.digest)
        if len(damaged) < len(kept):
            with pytest.raises(LakeError, match=f"{stored.path}: the object is shorter than the manifest says"):
                zone.read(stored.path, stored.digest, stored.bytes)
            assert zone.publish(plain, ".arrow", how) == stored  # type: ignore[arg-type]
            assert fs.cat_file(f"lake/faults/{stored.path}") == kept
    fs.rm_file(f"lake/faults/{stored.path}")
    with pytest.raises(LakeError, match=f"{stored.path}: an object that the manifest names is missing"):
        zone.read(stored.path, stored.digest, stored.bytes)


def test_an_upload_outlives_errors_and_cuts(proxy: FaultyProxy, zone: Zone) -> None:
    left = [s3_error(503, "SlowDown")] * 3
    proxy.answer(lambda head: left.pop() if left and head.startswith((b"PUT", b"POST")) else None)
    proxy.cut(after=0, times=2)
    data = DATA[: 9 << 20] + b"uploaded"
    stored = zone.publish(data, ".bin")
    assert not left
    assert zone.read(stored.path, stored.digest) == data


#: Copies a file into the zone, whose upload never ends.
UPLOAD = """
import sys, fsspec
from pathlib import Path
from storage.lake import Zone
Zone(Path(sys.argv[1]), "s3://lake/faults").publish_from(fsspec.filesystem("file"), sys.argv[2], ".bin")
"""


def test_a_killed_upload_leaves_nothing_visible_and_is_swept(
    proxy: FaultyProxy, zone: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, waiting = tmp_path / "source.bin", tmp_path / "tmp"
    source.write_bytes(DATA + b"killed")
    waiting.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(waiting))
    foreign = waiting / ".incoming.abcdefgh.tmp"
    foreign.write_text("another program's")
    os.utime(foreign, (0, 0))
    before = zone.sizes()
    proxy.slow(100_000)
    proxy.answer(lambda head: proxy.stall() if head.startswith(b"PUT") else None)  # type: ignore[func-returns-value]
    env = {**os.environ, "TMPDIR": str(waiting)}
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, str(zone.folder), str(source)], env=env)
    wait_for(lambda: any(head.startswith(b"PUT") for head in proxy.requests), "the upload")
    left = [file for file in waiting.iterdir() if file != foreign]
    assert [file.stat().st_size for file in left] == [len(DATA) + 6]
    os.utime(left[0], (0, 0))
    manifest = Manifest.build("raw", [], kind="files")
    assert zone.sweep(manifest) == 0  # its process lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.heal()
    proxy.down()
    proxy.up()
    assert zone.sizes() == before
    os.utime(left[0])
    assert zone.sweep(manifest) == 0  # younger than this process
    os.utime(left[0], (0, 0))
    assert zone.sweep(manifest) == 1
    assert list(waiting.iterdir()) == [foreign]


def test_a_server_that_is_killed_and_comes_back(
    server: S3Machine, proxy: FaultyProxy, zone: Zone, stored: StoredObject
) -> None:
    starter: list[threading.Thread] = []

    def restart() -> None:
        server.kill()
        server.start()
        proxy.target = server.place

    def kill(start: int, stop: int) -> None:
        if not starter:
            starter.append(threading.Thread(target=restart))
            starter[0].start()
            server.s3.process.wait()

    assert fetch(zone, stored, kill, timeout=60) == DATA
    starter[0].join()


@pytest.mark.parametrize("how", ["forgotten", "refused"])
def test_a_store_that_is_back_is_not_waited_for(proxy: FaultyProxy, zone: Zone, stored: StoredObject, how: str) -> None:
    """It is away for three seconds; connections of before may never hear of it. With the time-out of everyday."""
    back: list[float] = []

    def up() -> None:
        proxy.up()
        back.append(time.monotonic())

    def away(start: int, stop: int) -> None:
        if not timer.is_alive() and not back:
            proxy.forget() if how == "forgotten" else proxy.down()
            timer.start()

    timer = threading.Timer(3, up)
    proxy.slow(40 << 20)  # so that the ranges are not done at once
    assert fetch(zone, stored, away, timeout=60) == DATA
    assert time.monotonic() - back[0] < 3 + SLACK
    timer.join()


@pytest.mark.long
def test_a_store_is_asked_every_other_second_however_long_it_has_failed(
    proxy: FaultyProxy, zone: Zone, stored: StoredObject
) -> None:
    """It may be back at any time. Pauses that doubled on and on would be of four seconds by then."""
    asked = list[float]()

    def fail(head: bytes) -> bytes | None:
        asked.append(time.monotonic())
        return s3_error(500, "InternalError") if asked[-1] - asked[0] < 8 else None

    proxy.answer(fail)
    assert RangeReader(str(zone.url), timeout=60).size(stored.path) == stored.bytes
    assert max(later - sooner for sooner, later in pairwise(asked)) < 1.5 + 1


@pytest.mark.parametrize(("ask", "share"), [("size", 1 / 12), ("put", 0.45)])
def test_what_a_store_has_forgotten_is_asked_again(
    proxy: FaultyProxy, zone: Zone, stored: StoredObject, ask: str, share: float
) -> None:
    asked, over = list[bytes](), threading.Event()
    reader, timeout = RangeReader(str(zone.url), timeout=12), 12

    def forget_the_first(head: bytes) -> None:
        asked.append(head)
        if len(asked) == 1:
            over.wait()

    proxy.answer(forget_the_first)
    begun = time.monotonic()
    if ask == "size":
        assert reader.size(stored.path) == stored.bytes
    else:
        reader.put("objects/new", b"new")
    assert share * timeout < time.monotonic() - begun < share * timeout + SLACK
    over.set()


@pytest.mark.parametrize(("code", "kind"), [("SlowDown", "busy"), ("ServiceUnavailable", "passing")])
def test_a_store_that_asks_for_fewer_requests_gets_them(
    proxy: FaultyProxy, zone: Zone, stored: StoredObject, code: str, kind: str
) -> None:
    """One that is only away is asked again soon."""
    client = RangeReader(str(zone.url))._open()[1]
    proxy.answer(lambda _: s3_error(503, code))
    with pytest.raises(OSError, match="503") as caught:
        client.read_into(stored.path, 0, memoryview(bytearray(10)), lambda _: None)
    assert client.explain(caught.value).kind == kind
