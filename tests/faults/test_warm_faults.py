"""`shardline cache` where a tier fails, with real faults: it says so, and counts what the tiers hold."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from training_samples import make_points

from pipelines.caches import open_cache
from pipelines.warm import drop, warm
from pipelines.workspace import Workspace
from storage.cache.tiered import objects_of
from storage.errors import FormatError, ParamsError

pytestmark = pytest.mark.xdist_group("redis")
LARGE = (300_000, 24, 24)  # rows: shards of some MiB


def make(root: Path, node: dict[str, Any] | None = None, url: str | None = None, **changes: Any) -> Workspace:
    """Three train shards on this machine, behind the tiers that are given."""
    cache = {"node": {"enabled": node is not None, **(node or {})}, "hot": {"url": url, "timeout_ms": 10_000}}
    return make_points(root, cache=cache, **changes)


def files(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder / "objects") if name.endswith(".arrow")]


@pytest.mark.parametrize(("rank", "world"), [(4, 4), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_there(tmp_path: Path, run: Run, rank: int, world: int) -> None:
    ws = make(tmp_path, node={})
    with pytest.raises(ParamsError, match=f"--rank {rank} of --world {world}"):
        warm(ws, rank=rank, world=world)
    done = run("shardline", "cache", "warm", "--rank", str(rank), "--world", str(world), cwd=tmp_path, code=2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["file", "file/cache", "n" * 300], ids=["file", "below a file", "long name"])
def test_a_folder_that_cannot_be_read_costs_the_tier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """With the default budget, which is told by what lies in the folder; as a training opens it."""
    (tmp_path / "file").write_text("")
    ws = make(tmp_path, node={"folder": name})
    zone = ws.zone("shards")
    objects = objects_of(zone.manifest().table)
    with open_cache(ws, zone) as cache:
        assert [len(memoryview(cache.fetch(obj))) for obj in objects] == [obj.bytes for obj in objects]  # type: ignore[arg-type]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "cache.node.folder" in record.getMessage()


def test_everything_is_dropped_without_a_manifest(tmp_path: Path) -> None:
    ws = make(tmp_path, node={"folder": "cache"})
    assert warm(ws)["shards"] == len(files(tmp_path / "cache")) == 3
    shutil.rmtree(ws.zone("shards").folder)
    with pytest.raises(FormatError, match="no manifest"):
        drop(ws)
    drop(ws, everything=True)
    assert files(tmp_path / "cache") == []
