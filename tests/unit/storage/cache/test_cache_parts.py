"""The small parts of the caches: memory that is used again, digests made on arrival, URLs without passwords."""

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError
from support.servers import Redis, redis_client, redis_server

from storage.cache import HotCache, NodeCache, Tiered
from storage.cache import tiered as tiered_module
from storage.cache.arrival import Memory, Verifier
from storage.cache.hot.address import check
from storage.cache.hot.receive import get_into
from storage.cache.node.cache import Claim
from storage.cache.write import write
from storage.digest import digest_bytes, digest_file
from storage.lake import Zone
from storage.redact import mask

PART = 1 << 20


def address(buffer: object) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)  # type: ignore[call-overload]


@pytest.mark.parametrize("hold", [memoryview, pa.py_buffer, lambda view: np.frombuffer(view, np.uint8)[5:7]])
def test_memory_is_used_again_when_nobody_looks_at_it(hold: object) -> None:
    memory = Memory()
    view = memory.take(3 * PART)
    first = address(view)
    held = hold(view)  # type: ignore[operator]
    del view
    assert address(memory.take(3 * PART)) != first
    del held
    assert address(memory.take(2 * PART)) == first
    assert address(memory.take(PART // 2)) != first  # it would waste too much


def test_memory_keeps_a_few_pieces_only() -> None:
    memory = Memory(spare=2 * PART)
    views = [memory.take(PART) for _ in range(6)]
    del views
    memory.take(64 * PART)
    assert len(memory._pieces) == 3
    memory.rest()
    assert sum(map(len, memory._pieces)) <= 2 * PART


@given(st.integers(0, 4 * PART), st.randoms(use_true_random=False), st.integers(0, 4))
def test_parts_may_come_in_any_order(size: int, random: object, told: int) -> None:
    view = memoryview(os.urandom(size))
    verifier = Verifier(view)
    parts = list(range(-(-size // PART)))
    random.shuffle(parts)  # type: ignore[attr-defined]
    for part in parts[:told]:
        verifier.arrived(part * PART, min(size, (part + 1) * PART))
    assert verifier.digest() == digest_bytes(view)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@host:1/0", "rediss://me:s3cret@host", "unix://me:s3cret@/run/redis.sock",
        "redis+cluster://me:s3cret@a:1,b:2", "redis+sentinel://me:s3cret@a/service?sentinel_password=s3cret&x=1",
    ],
)  # fmt: skip
def test_urls_are_told_without_passwords(url: str) -> None:
    assert check(url) == url
    assert "s3cret" not in mask(f"Cannot connect to {url}: refused")
    assert "refused" in mask(f"Cannot connect to {url}: refused")


@pytest.mark.parametrize("secret", ["pa/ss+word", "p@ss", "p:a@s/s"])
def test_passwords_that_should_have_been_quoted_are_hidden_too(secret: str) -> None:
    told = mask(f"redis://:{secret}@host:6379: no host, sftp://me:{secret}@there/objects/x: not found")
    assert told == "redis://:***@host:6379: no host, sftp://me:***@there/objects/x: not found"


@pytest.mark.parametrize(
    "url", ["http://:s3cret@host", "redis://", "unix://", "redis+sentinel://:s3cret@host", "redis+cluster://,", "host"]
)
def test_urls_of_no_redis_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        check(url)
    assert "s3cret" not in str(caught.value)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.mark.xdist_group("redis")
def test_values_come_into_their_places(redis: Redis, tmp_path: Path) -> None:
    """Those that are missing or of another size are told; an error leaves no reply behind for the next exchange."""
    sizes = [0, 1, 61, 64, 70, PART, 3 * PART + 1]
    values = [os.urandom(size) for size in sizes]
    for number, value in enumerate(values):
        redis.client.set(f"v{number}", value)
    redis.client.lpush("list", "x")
    redis.client.acl_setuser("limited", enabled=True, nopass=True, keys=["v*"], commands=["+@all"])
    limited = redis_client(redis.url, username="limited", password="any")
    for _ in range(2):
        places = [memoryview(bytearray(size)) for size in (*sizes, 5, 5)]
        keys = [*(f"v{number}" for number in range(len(sizes))), "none", "v5"]
        assert get_into(redis.client, keys, places) == [*([True] * len(sizes)), False, False]
        assert [bytes(place) for place in places[: len(sizes)]] == values
        assert get_into(redis.client, ["v6", "list", "v5"], [places[6], places[6], places[5]]) == [True, False, True]
        with pytest.raises(ResponseError, match="No permissions"):
            get_into(limited, ["v6", "other", "v5"], [places[6], places[6], places[5]])
        assert get_into(limited, ["v4"], [places[4]]) == [True]


def test_a_shard_is_in_use_before_its_file_is_written(tmp_path: Path) -> None:
    zone = Zone(tmp_path / "lake")
    objects = [zone.publish(bytes([number]) * 1000, ".arrow") for number in range(9)]
    node = NodeCache(tmp_path / "node", 1 << 20)
    writing = threading.Event()
    commit = Claim.commit

    def commit_when_told(claim: Claim, view: memoryview, *, direct: bool = False) -> Path | None:
        assert direct is (threading.current_thread() is not threading.main_thread())
        assert not direct or writing.wait(60)
        return commit(claim, view, direct=direct)

    with pytest.MonkeyPatch.context() as patch, Tiered(zone, node) as tiers:
        patch.setattr(Claim, "commit", commit_when_told)
        opened = [tiers.open(obj) for obj in objects]
        there = [node.path(obj.digest).exists() for obj in objects]
        writing.set()
    assert [bytes(buffer) for buffer, _ in opened] == [bytes([number]) * 1000 for number in range(9)]
    assert there == [not in_memory for _, in_memory in opened] == [False] * 4 + [True] * 5
    assert sorted(node.digests()) == sorted(obj.digest for obj in objects)  # all are, once it is closed
    with Tiered(zone, node) as tiers:
        assert [tiers.open(obj)[1] for obj in objects] == [False] * 9


def test_who_comes_too_late_to_fetch_takes_no_entry_of_the_ring(tmp_path: Path) -> None:
    """A waiter may make its temporary file just after the other's was renamed; it counted nothing in."""
    node = NodeCache(tmp_path, 1000, 1000)
    claim = node.claim("a" * 64, 100)
    assert isinstance(claim, Claim)
    claim.commit(memoryview(bytes(100)))
    before = json.loads((tmp_path / "shardline" / "index.json").read_text())
    late = os.open(node.temporary("a" * 64), os.O_RDWR | os.O_CREAT)
    node.give_back("a" * 64, 0, late)
    after = json.loads((tmp_path / "shardline" / "index.json").read_text())
    assert before["ring"] == after["ring"] == {"a" * 64: 100}
    assert before["bytes"] == after["bytes"] == 100
    assert not node.temporary("a" * 64).exists()


def test_what_is_opened_cannot_be_changed(tmp_path: Path) -> None:
    zone = Zone(tmp_path / "lake", f"memory://{tmp_path}")
    obj = zone.publish(b"12345678", ".arrow")
    for node in (None, NodeCache(tmp_path / "node", 1 << 20)):
        with Tiered(zone, node) as tiers:
            assert not tiers.open(obj)[0].is_mutable


def test_a_claim_that_lost_its_folder_does_not_name_anothers_file(tmp_path: Path) -> None:
    node, digest = NodeCache(tmp_path / "node", 1 << 20), "0" * 64
    lost = node.claim(digest, 8)
    shutil.rmtree(node.folder)
    other = NodeCache(node.folder, 1 << 20).claim(digest, 8)
    assert isinstance(lost, Claim)
    assert isinstance(other, Claim)
    assert lost.commit(memoryview(b"12345678")) is None
    assert not node.path(digest).exists()
    assert other.commit(memoryview(b"12345678")) == node.path(digest)
    assert node.usage()["bytes"] == 8


@pytest.mark.parametrize("place", ["node cache", "local lake"])
def test_a_file_of_this_machine_is_checked_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone(tmp_path / "lake", f"memory://{tmp_path}" if place == "node cache" else None)
    obj = zone.publish(b"12345678", ".arrow")
    node = NodeCache(tmp_path / "node", 1 << 20) if place == "node cache" else None
    file = zone.local_path(obj.path) if node is None else node.path(obj.digest)
    with Tiered(zone, node) as first:
        first.open(obj)
    checked: list[Path] = []

    def count(path: Path) -> str:
        checked.append(path)
        return digest_file(path)

    monkeypatch.setattr(tiered_module, "digest_file", count)
    with Tiered(zone, node) as tiers:
        assert [tiers.open(obj)[0].to_pybytes() for _ in range(2)] == [b"12345678"] * 2
    assert checked == [file]


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 4095, (8 << 20) + 5])
@pytest.mark.parametrize("place", ["disk", "memory file system"])
def test_a_file_is_the_same_past_the_page_cache(size: int, place: str, tmp_path: Path) -> None:
    """The tail, small files, memory that begins anywhere and file systems without direct writes go the usual way."""
    view = Memory().take(size + 1)
    view[:] = os.urandom(size + 1)
    folder = tmp_path if place == "disk" else Path("/dev/shm")
    for part in (view[:size], view[1:]):
        descriptor, name = tempfile.mkstemp(dir=folder)
        try:
            write(descriptor, part, direct=True)
            assert Path(name).read_bytes() == part
            assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        finally:
            os.close(descriptor)
            os.unlink(name)


def test_what_is_written_behind_leaves_the_page_cache_alone(tmp_path: Path) -> None:
    """A direct write was made in whole blocks, if the file system can: none of its pages is in memory."""
    view = Memory().take(8 << 20)
    with (tmp_path / "file").open("w+b") as file:
        write(file.fileno(), view, direct=True)
        assert resident(tmp_path / "file") == 0
        write(file.fileno(), view)
        assert resident(tmp_path / "file") == 8 << 20


def resident(file: Path) -> int:
    """Bytes of the file in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    pages = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
    start = address(mapped)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_all_caches_of_a_process_share_their_memory(tmp_path: Path) -> None:
    zone = Zone(tmp_path / "lake", f"memory://{tmp_path}")
    obj = zone.publish(bytes(3 * PART), ".arrow")
    places = []
    for _ in range(2):
        with Tiered(zone) as tiers:
            buffer = tiers.open(obj)[0]
            places.append(buffer.address)
            del buffer
    assert places[0] == places[1]


@pytest.mark.xdist_group("redis")
def test_a_shard_of_redis_waits_for_no_disk(redis: Redis, tmp_path: Path) -> None:
    """While as many as may be are waiting to be written, those of Redis are not kept on the node, but those of the lake
    are; another time they may be."""
    zone = Zone(tmp_path / "lake", f"memory://{tmp_path}")
    objects = [zone.publish(bytes([number]) * 1000, ".arrow") for number in range(6)]
    with Tiered(zone, hot=HotCache(redis.url, 1 << 20)) as tiers:
        for obj in objects[:5]:
            tiers.open(obj)
    node, writing, commit = NodeCache(tmp_path / "node", 1 << 20), threading.Event(), Claim.commit

    def commit_when_told(claim: Claim, view: memoryview, *, direct: bool = False) -> Path | None:
        assert not direct or writing.wait(60)
        return commit(claim, view, direct=direct)

    with pytest.MonkeyPatch.context() as patch, Tiered(zone, node, HotCache(redis.url, 1 << 20)) as tiers:
        patch.setattr(Claim, "commit", commit_when_told)
        assert [tiers.open(obj)[1] for obj in objects] == [True] * 5 + [False]
        assert tiers.counters()["hot"].hits == 5
        writing.set()
    kept = {obj.digest for number, obj in enumerate(objects) if number != 4}
    assert set(node.digests()) == kept
    assert json.loads((tmp_path / "node" / "shardline" / "index.json").read_text())["bytes"] == 5000
    with Tiered(zone, node, HotCache(redis.url, 1 << 20)) as tiers:
        assert tiers.open(objects[4])[1]
    assert set(node.digests()) == kept | {objects[4].digest}
