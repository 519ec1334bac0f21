"""The node's disk: full, its folder deleted or never made, and files of others in it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty_caches import PART, READER, digest_of, environment, job_of, lines, read_all, result_of

from storage.cache import NodeCache, Tiered
from storage.cache.node.files import Files
from storage.cache.node.place import make
from storage.digest import digest_bytes
from storage.lake import StoredObject, Zone

pytestmark = pytest.mark.xdist_group("redis")


def test_a_full_disk_is_told_once_and_memory_serves(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    """The folder is a real file system of 8 MiB in a mount namespace of its own: two of eight shards fit."""
    (tmp_path / "cache").mkdir()
    job = job_of(zone, objects * 2, node=str(tmp_path / "cache"))
    script = 'mount -t tmpfs -o size=8m tmpfs cache && "$@" && find cache -name "*.tmp"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *READER, job]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()  # so no temporary file was found
    assert result_of(line, objects)["counters"]["lake"]["hits"] == 2 + 2 * 6
    assert done.stderr.count("the disk is full") == 1


def test_a_deleted_folder_is_made_again(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Tiered(zone, NodeCache(folder, 64 * PART)) as cache:
        assert all(isinstance(cache.fetch(obj), Path) for obj in objects[:3])
        mapped = [cache.open(obj)[0] for obj in objects[:3]]
        shutil.rmtree(folder)
        assert [digest_bytes(buffer) for buffer in mapped] == [obj.digest for obj in objects[:3]]
        read_all(cache, objects)
    assert cache.counters()["lake"].hits == 3 + 8
    assert NodeCache(folder, 64 * PART).usage()["bytes"] == sum(obj.bytes for obj in objects)


def test_a_folder_deleted_while_it_is_written_to(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = NodeCache(tmp_path / "cache", 64 * PART)
    cache = Tiered(zone, node)
    claim = node.claim(objects[0].digest, objects[0].bytes)
    assert not isinstance(claim, Path)
    assert claim is not None
    shutil.rmtree(tmp_path / "cache")
    read_all(cache, objects[1:2])  # into a new folder, which doesn't count the claim
    assert digest_of(cache._into(claim, objects[0], behind=False)) == objects[0].digest
    read_all(cache, objects)
    assert len(lines(caplog)) == 1
    assert json.loads((tmp_path / "cache" / "shardline" / "index.json").read_text())["bytes"] == node.usage()["bytes"]
    cache.close()


def test_a_folder_that_cannot_be_made(
    zone: Zone, objects: list[StoredObject], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with Tiered(zone, NodeCache(tmp_path / "file" / "cache", 64 * PART)) as cache:
        read_all(cache, objects)
    assert len(lines(caplog)) == 1


def test_a_shard_dropped_while_the_folder_is_listed_is_none_of_it(
    zone: Zone, objects: list[StoredObject], tmp_path: Path
) -> None:
    class Listed(Files):
        def listed(self) -> Iterator[tuple[str, str, "os.DirEntry[str]"]]:
            for found in super().listed():
                if found[0] == objects[0].digest:
                    os.unlink(found[2])
                yield found

    with Tiered(zone, NodeCache(tmp_path / "cache", 64 * PART)) as cache:
        read_all(cache, objects[:2])
    node = NodeCache(tmp_path / "cache", 64 * PART)
    node.files = Listed(tmp_path / "cache")
    assert node.digests() == {objects[1].digest: objects[1].bytes}


def test_only_files_of_its_own_are_deleted(zone: Zone, objects: list[StoredObject], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shardline" / "objects"
    make(folder.parent)
    folder.mkdir()
    for name in ("mine.arrow", "notes.tmp", "0" * 64, f"{'0' * 64}.txt"):
        (folder / name).write_text("mine")
    node = NodeCache(tmp_path / "cache", 8 * PART, 4 * PART)
    with Tiered(zone, node) as cache:
        read_all(cache, objects)
    assert node.drop(node.digests()) > 0
    assert sorted(os.listdir(folder)) == sorted(["mine.arrow", "notes.tmp", "0" * 64, f"{'0' * 64}.txt"])
