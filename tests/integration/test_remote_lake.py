"""The data stages over a lake on a real S3 server: the folder that DVC tracks holds the manifest alone."""

from pathlib import Path

import fsspec
import pytest
from conftest import TINY, Run, write_params
from support.servers import S3

from pipelines.evaluation.data import open_split
from pipelines.workspace import Workspace
from storage.manifest import Manifest

pytestmark = pytest.mark.xdist_group("s3")
STAGES = ("ingest", "curate", "shard")


@pytest.fixture(autouse=True)
def _environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.long
def test_zones_in_an_object_store(run: Run, recipe: Path, s3: S3, tmp_path: Path) -> None:
    for stage in STAGES:
        run("shardline", stage, cwd=recipe)
    local = {zone: Manifest.load(recipe / "data" / zone) for zone in ("raw", "curated", "shards")}

    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "texts").symlink_to(recipe / "texts")
    write_params(remote, {**TINY, "lake": {"url": "s3://lake/team"}})
    for stage in STAGES:
        run("shardline", stage, cwd=remote, env=s3.env)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    for zone, beside in local.items():
        assert sorted(path.name for path in (remote / "data" / zone).iterdir()) == ["manifest.arrow"]
        manifest = Manifest.load(remote / "data" / zone)
        if zone == "shards":  # the same shards, compressed at rest
            assert manifest.table["digest"] == beside.table["digest"]
            assert manifest.table["plain_bytes"] == beside.table["bytes"]
            assert all(path.endswith(".arrow.zst") for path in manifest.table["path"].to_pylist())
        else:
            assert manifest.digest == beside.digest
        names = {path.rsplit("/", 1)[-1] for path in fs.find(f"lake/team/tiny/{zone}/objects")}
        assert names == {path.rsplit("/", 1)[-1] for path in manifest.table["path"].to_pylist()}
    here, there = (Workspace.open(folder).zone("shards") for folder in (recipe, remote))
    for split in ("train", "test"):
        for ours, theirs in zip(*(open_split(zone, zone.manifest(), split) for zone in (here, there)), strict=True):
            assert (ours.tokens == theirs.tokens).all()
            assert ours.ids == theirs.ids
    assert "0 of" in run("shardline", "shard", cwd=remote, env=s3.env).stdout
    assert "KiB plain" in run("shardline", "show", "shards", cwd=remote, env=s3.env).stdout
    assert "0 not" in run("shardline", "verify", cwd=remote, env=s3.env).stdout


def test_a_zone_of_its_own_and_a_source_in_s3(run: Run, recipe: Path, s3: S3) -> None:
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.put(str(recipe / "texts") + "/", "lake/sources/texts/", recursive=True)
    sections = {
        "ingest": {"sources": ["s3://lake/sources/texts/**/*.txt"]},
        "lake": {"zones": {"shards": "s3://lake/own"}},
    }
    write_params(recipe, {**TINY, **sections})
    for stage in STAGES:
        run("shardline", stage, cwd=recipe, env=s3.env)
    assert (recipe / "data" / "raw" / "objects").is_dir()
    assert not (recipe / "data" / "shards" / "objects").exists()
    assert len(fs.find("lake/own/objects")) == Manifest.load(recipe / "data" / "shards").table.num_rows
    assert "0 of" in run("shardline", "ingest", cwd=recipe, env=s3.env).stdout


def test_a_lake_that_refuses_says_where_and_what(run: Run, recipe: Path, s3: S3) -> None:
    write_params(recipe, {**TINY, "lake": {"url": "s3://lake/team"}})
    env = {**s3.env, "AWS_SECRET_ACCESS_KEY": "wrong"}
    done = run("shardline", "ingest", cwd=recipe, env=env, code=1)
    assert "s3://lake/team/tiny/raw/objects" in done.stderr
    assert "credentials" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong" not in done.stderr
