"""A node cache's folder: it deletes nothing that it did not write, and keeps a budget that was lowered."""

import json
import os
import time
from pathlib import Path

import pytest

from storage.cache import NodeCache, Tiered
from storage.digest import digest_bytes
from storage.errors import FormatError, ParamsError
from storage.lake import StoredObject, Zone

PART = 1 << 20
NOW = time.time()


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "lake")


@pytest.fixture
def objects(zone: Zone) -> list[StoredObject]:
    return [zone.publish(os.urandom(PART + 7), ".arrow") for _ in range(8)]


def read_all(cache: Tiered, objects: list[StoredObject]) -> None:
    for obj in objects:
        source = cache.fetch(obj)
        assert digest_bytes(source.read_bytes() if isinstance(source, Path) else source) == obj.digest


@pytest.mark.parametrize("where", ["is", "contains", "lies in"])
def test_a_folder_of_a_zone_is_refused(tmp_path: Path, where: str) -> None:
    """Its objects are named by their digests, as the cache's files are: it would delete them as its own."""
    zone = Zone(tmp_path / "data" / "shards", str(tmp_path / "far" / "lake"))
    for place in (zone.folder, tmp_path / "far" / "lake"):
        stored = zone.publish(b"original", ".arrow")
        folder = {"is": place, "contains": place.parent, "lies in": place / "cache"}[where]
        with pytest.raises(ParamsError, match=rf"cache.node.folder: {folder} {where} {place}, where a zone's objects"):
            Tiered(zone, NodeCache(folder, 64 * PART))
        assert zone.read(stored.path) == b"original"


@pytest.mark.parametrize("content", ["objects", "notes.txt"])
def test_a_folder_that_another_program_filled_is_left_alone(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A name is no proof: whatever is called as a shard of ours would be, it isn't the cache's without its tag."""
    other = tmp_path / "cache" / "shardline" / content
    other.mkdir(parents=True)
    victim = other / f"{objects[0].digest}.arrow"
    victim.write_bytes(b"a user's")
    node = NodeCache(tmp_path / "cache", 64 * PART)
    with Tiered(zone, node) as cache:
        read_all(cache, objects)
    assert victim.read_bytes() == b"a user's"
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == sorted(["shardline", content, victim.name])
    assert "it is no cache's, and is left alone" in caplog.text
    with pytest.raises(FileExistsError):
        node.drop([objects[0].digest])


@pytest.mark.parametrize("digest", ["../../../../victim", "/" + "a" * 63, "A" * 64, ""])
def test_a_digest_that_is_none_names_no_file(tmp_path: Path, digest: str) -> None:
    """The first version joined it to its folder, whatever it was, and emptied and deleted what lay there."""
    victim = tmp_path / "victim.tmp"
    victim.write_text("a user's")
    node = NodeCache(tmp_path / "a" / "b" / "c", 64 * PART)
    for use in (node.find, node.claim):
        with pytest.raises(FormatError, match="is no digest"):
            use(digest, 5)
    with pytest.raises(FormatError, match="is no digest"):
        node.drop([digest])
    assert victim.read_text() == "a user's"


def test_a_budget_that_was_lowered_is_kept(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    """Even where all that is read is there already: what was read longest ago gives its place."""
    before = NodeCache(tmp_path / "cache", 64 * PART)
    with Tiered(zone, before) as cache:
        read_all(cache, objects)
        assert before.usage()["bytes"] == sum(obj.bytes for obj in objects)
    for age, obj in enumerate(reversed(objects)):
        os.utime(before.path(obj.digest), (NOW - age, NOW - age))
    ring = objects[-1].bytes
    node = NodeCache(tmp_path / "cache", sum(obj.bytes for obj in objects[-2:]) + ring, ring)
    with Tiered(zone, node) as cache:
        read_all(cache, objects[-1:])
        assert node.digests().keys() == {obj.digest for obj in objects[-2:]}
        assert cache.counters()["lake"].hits == 0
        read_all(cache, objects)
    assert node.usage()["bytes"] <= node.budget
    index = json.loads((node.files.place / "index.json").read_text())
    assert index["bytes"] == node.usage()["bytes"]


def test_a_cache_without_a_budget_deletes_nothing(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    """It stands in for one whose folder could not be read a moment ago."""
    with Tiered(zone, NodeCache(tmp_path / "cache", 64 * PART)) as cache:
        read_all(cache, objects[:4])
    with Tiered(zone, NodeCache(tmp_path / "cache", 0)) as cache:
        read_all(cache, objects)
    assert NodeCache(tmp_path / "cache", 0).digests().keys() == {obj.digest for obj in objects[:4]}
