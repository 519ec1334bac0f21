"""Zones: what is one process's own. Their objects: tests/conformance/test_lake_backends.py."""

import errno
from pathlib import Path

import fsspec
import pytest

from storage.errors import LakeError
from storage.lake import Zone, open_zone
from storage.objects.retries import RangeReader


@pytest.mark.parametrize(
    ("zone", "says"),
    [
        (Zone(Path("z"), "nosuch://x"), r"lake.url='nosuch://x' cannot be opened: .*nosuch"),
        (Zone(Path("z"), "s3://x", (("bucket_name", 1),)), "Unknown options for S3: bucket_name. Known: key, secret"),
        (
            Zone(Path("z"), "gs://x", (("nonsense", 1),)),
            r"lake.url='gs://x' cannot be opened: .*'nonsense'.* not valid",
        ),
        (Zone(Path("z"), "az://x"), r"lake.url='az://x' cannot be opened: .*Account must be specified"),
    ],
)
def test_a_place_that_cannot_be_opened_is_named(zone: Zone, says: str) -> None:
    with pytest.raises(LakeError, match=says):
        zone.publish(b"x", "")


def test_a_place_has_one_reader_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone(tmp_path, "s3://bucket/prefix")
    assert zone.reader is Zone(tmp_path / "other", "s3://bucket/prefix").reader
    assert zone.reader is not Zone(tmp_path, "s3://bucket/prefix", timeout=1).reader
    before = zone.reader
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert zone.reader is not before


def test_a_file_system_shows_an_object_once_it_is_whole(tmp_path: Path) -> None:
    reader = RangeReader(str(tmp_path / "far"))
    reader.put("objects/a.bin", b"whole")
    (tmp_path / "b.bin").write_bytes(b"file")
    reader.put("objects/b.bin", tmp_path / "b.bin")
    assert reader.sizes("objects") == {"a.bin": 5, "b.bin": 4}
    with pytest.raises(LakeError, match=r"objects/c\.bin.*compute\.lake_timeout=0\.1"):
        RangeReader(reader.url, timeout=0.1).put("objects/c.bin", Path("/proc/self/mem"))  # breaks off as it is copied
    assert reader.sizes("objects") == {"a.bin": 5, "b.bin": 4}


def test_a_recipe_places_its_zones(tmp_path: Path) -> None:
    own = {"shards": "gs://fast/shards"}
    beside = open_zone(tmp_path, "raw", None, own, "tiny")
    assert (beside.folder, beside.url, beside.root) == (tmp_path / "data" / "raw", None, tmp_path / "data" / "raw")
    lake = open_zone(tmp_path, "raw", "s3://b/p/", own, "tiny", 7.5)
    assert (lake.url, lake.root, lake.timeout) == ("s3://b/p/tiny/raw", None, 7.5)
    assert open_zone(tmp_path, "shards", "s3://b/p", own, "tiny").url == "gs://fast/shards"
    assert open_zone(tmp_path, "raw", "file://lake", {}, "tiny").root == tmp_path / "lake" / "tiny" / "raw"


def test_a_source_that_may_not_be_read_is_not_taken_for_a_lake_that_may_not_be_written(tmp_path: Path) -> None:
    class Denied(fsspec.AbstractFileSystem):
        def _open(self, path: str, *_: object, **__: object) -> object:
            raise PermissionError(errno.EACCES, "Permission denied", path)

    with pytest.raises(PermissionError, match=r"Permission denied: '/?theirs.txt'"):
        Zone(tmp_path).publish_stream(lambda: Denied().open("theirs.txt", "rb"), "")
    assert not [*(tmp_path / "objects").iterdir()]
