"""Reads from a lake that fails for real, behind a proxy that harms it and with damaged objects.

In each case the bytes are exact, or there is one LakeError (or DigestError) that names the object, within the time-out.
"""

import threading
import time
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.faulty_lake import DATA, RANGES, TIMEOUT, fails, fetch
from support.faulty_proxy import FaultyProxy, s3_error
from support.servers import wait_for

from storage.atomic import write_atomically
from storage.errors import DigestError, LakeError
from storage.lake import StoredObject, Zone
from storage.objects.retries import RangeReader, _Job

pytestmark = pytest.mark.xdist_group("s3")


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
