"""A store that was away, killed or forgetful is asked again once it is back, and no more often than it asks for."""

import threading
import time

import pytest
from support.faulty_lake import DATA, SLACK, fetch
from support.faulty_proxy import FaultyProxy, s3_error
from support.servers import S3Machine

from storage.lake import StoredObject, Zone
from storage.objects.retries import RangeReader

pytestmark = pytest.mark.xdist_group("s3")


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
