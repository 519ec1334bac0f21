"""One suite over every backend of the lake: a zone's objects behave alike, wherever they lie."""

import io
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from support.servers import S3

from storage.errors import DigestError, LakeError
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest
from storage.named import NamedFiles
from storage.objects.compression import Compression

pytestmark = pytest.mark.xdist_group("s3")

NOISE = np.random.default_rng(0).bytes((9 << 20) + 77)  # more than one range
TEXT = b"the same words over and over, " * 100_000

Damage = Callable[[str, bytes], None]


@pytest.fixture(params=["beside", "folder", "file", "memory", "s3"])
def zone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """Objects beside the manifest, in another folder, by a file:// URL, in memory, and on a real S3 server."""
    folder = tmp_path / "zone"
    if request.param == "beside":
        yield Zone(folder)
    elif request.param == "folder":
        yield Zone(folder, str(tmp_path / "a lake"))
    elif request.param == "file":
        yield Zone(folder, f"file://{tmp_path}/lake/zone")
    elif request.param == "memory":
        yield Zone(folder, "memory://conformance/zone")
        fs = fsspec.filesystem("memory")
        if fs.exists("/conformance"):
            fs.rm("/conformance", recursive=True)
    else:
        server: S3 = request.getfixturevalue("s3")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield Zone(folder, f"s3://lake/conformance {tmp_path.name}%20é")


@pytest.fixture
def damage(zone: Zone) -> Damage:
    """Puts other bytes in the place of an object, behind the zone's back."""

    def put(path: str, data: bytes) -> None:
        if zone.root is not None:
            (zone.root / path).write_bytes(data)
        else:
            fs, root = fsspec.core.url_to_fs(zone.url, skip_instance_cache=True)
            fs.pipe_file(f"{root}/{path}", data)

    return put


def ranged(zone: Zone, path: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) by the zone's reader, which says of each byte once that it has come."""
    out, told = bytearray(stop - start), list[tuple[int, int]]()
    zone.reader.read_into(path, start, out, lambda a, b: told.append((a, b)))
    told.sort()
    assert [a for a, _ in told] == [0, *(b for _, b in told[:-1])][: len(told)]
    assert all(a % (1 << 20) == 0 for a, _ in told)
    assert sum(b - a for a, b in told) == stop - start
    return bytes(out)


def test_an_object_is_named_by_its_content_and_stored_once(zone: Zone) -> None:
    first = zone.publish(b"hello", ".bin")
    assert first == StoredObject(f"objects/{first.digest}.bin", first.digest, 5, 5)
    assert first == zone.publish(bytearray(b"hello"), ".bin") == zone.publish(np.frombuffer(b"hello", "u1"), ".bin")
    assert zone.sizes() == {first.path: 5}
    assert zone.exists(first.path, 5)
    assert not zone.exists(first.path, 4)
    assert not zone.exists("objects/nothing.bin", 5)
    assert zone.read(first.path, first.digest) == b"hello"
    assert zone.read(first.path, first.digest, first.bytes) == b"hello"


def test_an_empty_zone_and_an_empty_object(zone: Zone) -> None:
    assert zone.sizes() == {}
    stored = zone.publish(b"", ".bin")
    assert stored.bytes == 0
    assert zone.sizes() == {stored.path: 0}
    assert zone.read(stored.path, stored.digest) == b""
    zone.verify(stored.path, stored.digest)


def test_copying_in_gives_the_same_object_as_publishing(zone: Zone, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(NOISE)
    copied = zone.publish_stream(lambda: source.open("rb"), ".bin")
    assert copied == zone.publish(NOISE, ".bin")
    assert zone.read(copied.path, copied.digest) == NOISE
    assert zone.sizes() == {copied.path: len(NOISE)}


def test_ranges_are_the_bytes_that_were_asked_for(zone: Zone) -> None:
    path = zone.publish(NOISE, ".bin").path
    end = len(NOISE)
    for start, stop in [(0, end), (1, end), (5 << 20, end - 1), (77, 78), (end - 1, end), (3, 3)]:
        assert ranged(zone, path, start, stop) == NOISE[start:stop]
    array = np.zeros((end // 4, 2), np.uint16)
    zone.reader.read_into(path, 0, array)  # straight into an array
    assert array.tobytes() == NOISE[: array.nbytes]


def test_a_range_past_the_end_and_a_missing_object_are_named(zone: Zone) -> None:
    path = zone.publish(NOISE, ".bin").path
    for start, stop in [(len(NOISE) - 1, len(NOISE) + 1), (0, len(NOISE) + (20 << 20)), (1 << 33, (1 << 33) + 1)]:
        with pytest.raises(LakeError, match=f"{path}: the object is shorter than the manifest says"):
            ranged(zone, path, start, stop)
    missing = r"nothere\.bin: an object that the manifest names is missing.*dvc pull"
    for read in (zone.read, lambda path: ranged(zone, path, 0, 10 << 20), lambda path: zone.verify(path, "00")):
        with pytest.raises(LakeError, match=missing):
            read("objects/nothere.bin")


def test_what_on_range_raises_ends_the_read(zone: Zone) -> None:
    path, out = zone.publish(NOISE, ".bin").path, bytearray(len(NOISE))
    told = []

    def refuse(start: int, stop: int) -> None:
        told.append(start)
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        zone.reader.read_into(path, 0, out, refuse)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("how", "data"), [("auto", TEXT), ("zstd", NOISE), ("zstd", b"x")], ids=["auto", "large", "small"]
)
def test_compressed_objects(zone: Zone, how: Compression, data: bytes) -> None:
    plain = zone.publish(data, ".arrow", "none")
    stored = zone.publish(data, ".arrow", how)
    if zone.root is not None:  # mapped, so plain
        assert stored == plain
        return
    assert stored.path == f"objects/{plain.digest}.arrow.zst"
    assert (stored.digest, stored.plain_bytes) == (plain.digest, len(data))
    assert zone.sizes()[stored.path] == stored.bytes
    assert stored.bytes < len(data) or data is not TEXT
    assert zone.publish(data, ".arrow", how) == stored
    assert zone.read(stored.path, stored.digest) == zone.read(stored.path, stored.digest, stored.bytes) == data
    zone.verify(stored.path, stored.digest)
    assert zone.local_path(stored.path) is None


def test_auto_leaves_plain_what_does_not_shrink(zone: Zone) -> None:
    assert zone.publish(NOISE, ".arrow", "auto").path.endswith(".arrow")


def test_other_bytes_of_the_same_plain_ones_stay(zone: Zone, damage: Damage) -> None:
    """As another version of zstd would write them: a manifest may name their size."""
    if zone.root is not None:
        return
    stored = zone.publish(TEXT, ".arrow", "zstd")
    other = pa.Codec("zstd", compression_level=12).compress(TEXT, asbytes=True)
    assert len(other) != stored.bytes
    damage(stored.path, other)
    assert zone.publish(TEXT, ".arrow", "zstd").bytes == len(other)
    damage(stored.path, other[:-1])
    assert zone.publish(TEXT, ".arrow", "zstd") == stored
    assert zone.sizes()[stored.path] == stored.bytes


@pytest.mark.parametrize("how", ["none", "zstd"])
def test_other_bytes_are_told_by_their_digest(zone: Zone, damage: Damage, how: Compression) -> None:
    stored = zone.publish(TEXT, ".arrow", how)
    zone.verify(stored.path, stored.digest)
    for wrong in (b"other", TEXT[:-1], b""):
        damage(stored.path, wrong)
        with pytest.raises(DigestError, match=f"{stored.path}.*{stored.digest}"):
            zone.read(stored.path, stored.digest)
        with pytest.raises(DigestError, match=f"{stored.path}.*{stored.digest}"):
            zone.verify(stored.path, stored.digest)


@pytest.mark.parametrize("at_once", [64 << 20, 1 << 20], ids=["in memory", "as a file"])
@pytest.mark.parametrize("how", ["none", "zstd"])
def test_an_opened_object_is_checked_and_can_be_sought_in(
    zone: Zone, damage: Damage, how: Compression, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.lake._VERIFIED", at_once)
    monkeypatch.setattr("storage.lake.gettempdir", lambda: str(tmp_path))
    stored = zone.publish(NOISE, ".bin", how)
    with zone.opened(stored.path, stored.digest) as file:
        assert file.read(10) == NOISE[:10]
        file.seek(-10, os.SEEK_END)
        assert file.read() == NOISE[-10:]
        file.seek(0)
        assert file.read() == NOISE
        assert isinstance(file, io.BytesIO) == (at_once > len(NOISE) or stored.path.endswith(".zst"))
    assert list(tmp_path.glob("*.tmp")) == []
    damage(stored.path, NOISE[:-1] + b"x")
    with pytest.raises(DigestError, match=f"{stored.path}.*{stored.digest}"), zone.opened(stored.path, stored.digest):
        pass
    with pytest.raises(LakeError, match=r"none\.bin"), zone.opened("objects/none.bin", stored.digest):
        pass


def test_commit_keeps_what_is_not_beside_the_manifest(zone: Zone) -> None:
    kept, dropped = zone.publish(b"kept", ".bin"), zone.publish(b"dropped", ".bin")
    manifest = Manifest.build("raw", [{**vars(kept), "rows": 1, "key": "k", "name": "n"}], kind="files")
    zone.commit(manifest)
    assert zone.manifest().digest == manifest.digest
    assert zone.sizes() == ({kept.path: 4} if zone.url is None else {kept.path: 4, dropped.path: 7})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_zone_travels_to_other_processes(zone: Zone) -> None:
    """Pickled, and in a child that was forked after its clients were used."""
    path = zone.publish(NOISE, ".bin").path
    assert ranged(zone, path, 0, 100) == NOISE[:100]
    assert ranged(pickle.loads(pickle.dumps(zone)), path, 0, 100) == NOISE[:100]
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # a client that waits for its parent's threads would wait for ever
        try:
            os._exit(0 if ranged(zone, path, 0, len(NOISE)) == NOISE else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_parts_are_stored_as_one_object_that_heals(zone: Zone, damage: Damage) -> None:
    parts = [b"head", np.arange(3, dtype="u2"), b"", NOISE]
    whole = b"".join(bytes(memoryview(part).cast("B")) for part in parts)
    stored = zone.publish_parts(parts, ".bin")
    assert stored == zone.publish(whole, ".bin")
    damage(stored.path, whole[:-1] + b"?")
    assert zone.publish_parts(parts, ".bin") == stored
    assert zone.read(stored.path, stored.digest) == whole


def test_files_with_names_of_their_own(zone: Zone) -> None:
    files, stored = NamedFiles(zone), zone.publish(b"hello", ".bin")
    assert files.paths() == {stored.path: 5}
    for text in (b"first", b"second one"):
        files.write("step-1/manifest.json", text)
        assert files.read("step-1/manifest.json") == text
    files.write("step-2/manifest.json", b"{}")
    assert files.paths() == {stored.path: 5, "step-1/manifest.json": 10, "step-2/manifest.json": 2}
    files.delete("step-1/manifest.json")
    files.delete("step-1/manifest.json")
    files.delete(stored.path)
    assert files.paths() == {"step-2/manifest.json": 2}
    with pytest.raises(FileNotFoundError):
        files.read("step-1/manifest.json")
