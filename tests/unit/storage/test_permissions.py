"""What Shardline writes may be read by those whom the umask lets, and by nobody else."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ingest.sources.examples import expand
from storage.atomic import temporary_folder, write_atomically
from storage.cache import NodeCache
from storage.cache.node.cache import Claim
from storage.lake import Zone
from storage.manifest import Manifest


@pytest.fixture(params=[0o077, 0o027, 0o022, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Of all files and folders below `folder`."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_new_files_and_folders_have_what_the_umask_says(tmp_path: Path, umask: int) -> None:
    source = tmp_path / "source.csv"
    source.write_text("a,b")
    place = tmp_path / "place"
    zone = Zone(place / "zone")
    zone.publish(b"shard", ".arrow")
    zone.publish_stream(lambda: source.open("rb"), ".csv")
    zone.commit(Manifest.build("raw", [], kind="files"))
    write_atomically(place / "file", b"")
    with temporary_folder(place, ".made.") as made:
        (made / "file").write_text("")
        made.rename(place / "made")
    node = NodeCache(place / "node", 1 << 20)
    claim = node.claim("a" * 64, 5)
    assert isinstance(claim, Claim)
    claim.commit(memoryview(b"shard"))
    expand("{sklearn_breast_cancer}", place)
    found = modes(place)
    folders = {name: mode for name, mode in found.items() if (place / name).is_dir()}
    assert len(found) > len(folders) > 5
    assert set(folders.values()) == {0o777 & ~umask}
    assert {mode for name, mode in found.items() if name not in folders} == {0o666 & ~umask}


def test_what_waits_in_the_folder_of_all_users_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    seen = []

    def parts() -> Iterator[bytes]:
        yield b"first"
        seen.extend(modes(tmp_path / "tmp").values())

    Zone(tmp_path / "zone", "memory://permissions").publish_parts(parts(), ".bin")
    assert seen == [0o600]
