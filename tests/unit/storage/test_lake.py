"""Zones: publishing, reading, verifying; the same suite over local and remote objects."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from storage.errors import DigestError, LakeError
from storage.lake import Zone
from storage.manifest import Manifest


@pytest.fixture(params=["beside", "file", "memory"])
def zone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Zone]:
    """Objects beside the manifest, in another folder, and in a remote store."""
    if request.param == "beside":
        yield Zone(tmp_path / "zone")
    elif request.param == "file":
        yield Zone(tmp_path / "zone", f"file://{tmp_path}/lake/zone")
    else:
        yield Zone(tmp_path / "zone", "memory://zone-test/shards")
        fs = fsspec.filesystem("memory")
        if fs.exists("/zone-test"):
            fs.rm("/zone-test", recursive=True)


def manifest_of(*stored: object) -> Manifest:
    records = [{**vars(item), "rows": 1, "key": "k", "name": "n"} for item in stored]
    return Manifest.build("raw", records, kind="files")


def damage(zone: Zone, path: str, data: bytes) -> None:
    if zone.root is not None:
        (zone.root / path).write_bytes(data)
    else:
        fsspec.filesystem("memory").pipe_file(f"/zone-test/shards/{path}", data)


def test_an_object_is_named_by_its_content_and_stored_once(zone: Zone) -> None:
    first = zone.publish(b"hello", ".bin")
    assert first == zone.publish(bytearray(b"hello"), ".bin")
    assert first.path == f"objects/{first.digest}.bin"
    assert zone.read(first.path, first.digest) == b"hello"
    assert zone.sizes() == {first.path: 5}
    assert zone.exists(first.path, 5)
    assert not zone.exists(first.path, 4)


def test_copying_in_gives_the_same_object_as_publishing(zone: Zone, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 100_000)
    copied = zone.publish_from(fsspec.filesystem("file"), str(source), ".bin")
    assert copied == zone.publish(b"x" * 100_000, ".bin")
    assert zone.read(copied.path, copied.digest) == source.read_bytes()


def test_a_flipped_bit_and_a_missing_object_are_named(zone: Zone) -> None:
    stored = zone.publish(b"hello", ".bin")
    zone.verify(stored.path, stored.digest)
    damage(zone, stored.path, b"hellp")
    with pytest.raises(DigestError, match=stored.digest):
        zone.read(stored.path, stored.digest)
    with pytest.raises(DigestError):
        zone.verify(stored.path, stored.digest)
    with pytest.raises(LakeError, match=r"nothere.bin.*dvc pull"):
        zone.read("objects/nothere.bin")


def test_commit_sweeps_only_the_folder_that_dvc_tracks(zone: Zone) -> None:
    kept, dropped = zone.publish(b"kept", ".bin"), zone.publish(b"dropped", ".bin")
    zone.commit(manifest_of(kept))
    assert zone.manifest().digest == manifest_of(kept).digest
    expected = {kept.path: 4} if zone.url is None else {kept.path: 4, dropped.path: 7}
    assert zone.sizes() == expected


def test_an_unknown_scheme_is_named(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"lake.url='nosuch://x'"):
        Zone(tmp_path, "nosuch://x").publish(b"x", "")
