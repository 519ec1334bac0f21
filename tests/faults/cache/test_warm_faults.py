"""`shardline cache` where a tier fails, with real faults: it says so, and counts what the tiers hold."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from support.servers import free_port, redis_server
from support.training_samples import make_points

from pipelines.caching.tiers import open_cache
from pipelines.caching.warm import drop, warm
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
    return [name for name in os.listdir(folder / "shardline" / "objects") if name.endswith(".arrow")]


@pytest.mark.parametrize(("rank", "world"), [(4, 4), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_there(tmp_path: Path, run: Run, rank: int, world: int) -> None:
    ws = make(tmp_path, node={})
    with pytest.raises(ParamsError, match=f"--rank {rank} of --world {world}"):
        warm(ws, rank=rank, world=world)
    done = run("shardline", "cache", "warm", "--rank", str(rank), "--world", str(world), cwd=tmp_path, code=2)
    assert "Traceback" not in done.stderr


def test_redis_is_down(tmp_path: Path, run: Run) -> None:
    """An error where it was asked for; else a warning, and the other tier is filled."""
    make(tmp_path, node={}, url=f"redis://:s3cret@127.0.0.1:{free_port()}")
    hot = run("shardline", "cache", "warm", "--tier", "hot", cwd=tmp_path, code=1)
    last = hot.stderr.splitlines()[-1]
    assert last.startswith("shardline: The hot cache redis://:***@127.0.0.1:")
    assert "cannot be reached: Error 111" in last
    assert "cache.hot.url" in last
    both = run("shardline", "cache", "warm", cwd=tmp_path)
    assert both.stdout.startswith("3 shards, ")
    assert "are at hand (node 3, hot 0)" in both.stdout
    assert both.stderr.count("The lake is read instead") == 1
    assert "s3cret" not in hot.stderr + both.stderr + both.stdout

    make(tmp_path / "alone", url=f"redis://127.0.0.1:{free_port()}")
    done = run("shardline", "cache", "warm", cwd=tmp_path / "alone")
    assert done.stdout.startswith("0 shards, ")
    assert "The lake is read instead" in done.stderr


def test_redis_is_full(tmp_path: Path, run: Run) -> None:
    """What it refused isn't at hand, though it was fetched and the budget had room for it."""
    with redis_server(tmp_path / "redis", memory="9mb") as redis:
        ws = make(tmp_path, url=redis.url, rows=LARGE)
        did = warm(ws, "hot")
        shards = ws.zone("shards").manifest().select("train")
        parts = [redis.client.keys(f"shardline:part:{digest}:*") for digest in shards["digest"].to_pylist()]
        whole = sum(len(found) << 20 >= size for found, size in zip(parts, shards["bytes"].to_pylist(), strict=True))
        assert did["shards"] == did["held"]["hot"] == whole < 3
        assert did["lost"]["hot"] == did["left"] == 3 - whole
        done = run("shardline", "cache", "warm", "--tier", "hot", cwd=tmp_path)
        assert "shards could not be kept: Redis is full (set its maxmemory to" in done.stdout


def test_the_disk_is_full(tmp_path: Path, run: Run) -> None:
    """The folder is a real file system of 8 MiB in a mount namespace of its own."""
    ws = make(tmp_path, node={"folder": "cache", "budget_mb": 1000}, rows=LARGE)
    (tmp_path / "cache").mkdir()
    shards = ws.zone("shards").manifest().select("train")["bytes"].to_pylist()
    assert sum(shards) > 8 << 20
    script = 'mount -t tmpfs -o size=8m tmpfs cache && "$@" && ls cache/shardline/objects/*.arrow | wc -l'
    command = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    done = run(*command, "shardline", "cache", "warm", "--tier", "node", cwd=tmp_path)
    told, said, kept = done.stdout.splitlines()
    assert int(kept) < 3
    assert told.startswith(f"node: {3 - int(kept)} shards could not be kept: is the disk full")
    assert "cache.node.folder" in told
    assert said.startswith(f"{kept} shards, ")
    assert f"(node {kept})" in said
    assert said.endswith(f"; {3 - int(kept)} more have no place")


@pytest.mark.parametrize("folder", ["data/shards", "data/raw", "data", "data/curated/cache"])
def test_a_folder_of_any_zone_is_refused(tmp_path: Path, run: Run, folder: str) -> None:
    """Its objects have the names that the cache's files have."""
    ws = make(tmp_path, node={"folder": folder, "budget_mb": 0.1})
    before = sorted(path for path in (tmp_path / "data").rglob("*"))
    done = run("shardline", "cache", "warm", "--tier", "node", cwd=tmp_path, code=2)
    assert f"cache.node.folder: {tmp_path / folder}" in done.stderr
    assert "where a zone's objects lie" in done.stderr
    assert sorted(path for path in (tmp_path / "data").rglob("*")) == before
    assert ws.zone("shards").manifest().table.num_rows


def test_the_node_cache_cannot_be_used(tmp_path: Path, run: Run) -> None:
    """A file lies where its folder should be: an error where it was asked for, else a warning."""
    (tmp_path / "file").write_text("")
    with redis_server(tmp_path / "redis") as redis:
        make(tmp_path, node={"folder": "file/cache", "budget_mb": 100}, url=redis.url)
        for command in ("warm", "drop"):
            done = run("shardline", "cache", command, "--tier", "node", cwd=tmp_path, code=1)
            assert "file/cache cannot be used: [Errno 20] Not a directory" in done.stderr
            assert "Set cache.node.folder" in done.stderr
            assert "Traceback" not in done.stderr
        done = run("shardline", "cache", "warm", cwd=tmp_path)
        assert "are at hand (node 0, hot 3)" in done.stdout
        assert done.stderr.count("Not a directory") == 1
        assert "not available: NotADirectoryError" in run("shardline", "cache", "show", cwd=tmp_path).stdout

    make(tmp_path, node={"folder": "file/cache", "budget_mb": 100})
    done = run("shardline", "cache", "warm", cwd=tmp_path)
    assert done.stdout.startswith("0 shards, ")
    assert done.stderr.count("Not a directory") == 1


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
