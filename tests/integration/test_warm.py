"""Caches filled before training: by the command and by the flows, from a real S3 server into a real Valkey."""

import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import TINY, Run, write_params
from support.prefect_service import Prefect
from support.servers import S3, redis_server

from pipelines.caching.warm import drop, show, warm
from pipelines.ingest import data_stage
from pipelines.ingest.stage import journal_of
from pipelines.ingest.stage import run as run_stage
from pipelines.training.parallelism import Layout
from pipelines.training.session import open_stream
from pipelines.workspace import Workspace
from storage.cache import NodeCache, Tiered
from storage.errors import ParamsError
from storage.manifest import Manifest

pytestmark = pytest.mark.xdist_group("s3")
LAKE = {"url": "s3://lake/warm"}


def make_shards(recipe: Path) -> None:
    """The data stages, in this process."""
    ws = Workspace.open(recipe)
    for stage in ("ingest", "curate", "shard"):
        run_stage(data_stage(stage, ws), journal_of(ws, stage), ws.params.compute)


def train_shards(recipe: Path) -> dict[str, int]:
    """Digest → plain bytes."""
    table = Manifest.load(recipe / "data" / "shards").select("train")
    return dict(zip(table["digest"].to_pylist(), table["plain_bytes"].to_pylist(), strict=True))


def order_of_training(ws: Workspace) -> list[str]:
    """Digests of the train split, in the order in which the only rank of a training first needs them."""
    zone = ws.zone("shards")
    tiers, device = Tiered(zone), torch.device("cpu")
    with open_stream(ws.params, tiers, zone.manifest(), Layout(), "train", device, train=True) as stream:
        ahead = np.concatenate(list(stream.order.ahead(0, 0)))
        return [stream.stored(shard).digest for shard in ahead.tolist()]


def first_of(digests: list[str], shards: dict[str, int], budget: float) -> dict[str, int]:
    """As many of the shards that come first as fit into the budget."""
    fitting = np.cumsum([shards[digest] for digest in digests]) <= budget
    return {digest: shards[digest] for digest, fits in zip(digests, fitting, strict=True) if fits}


def test_warm_show_drop(
    run: Run, recipe: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    with redis_server(tmp_path / "redis", requirepass="s3cret") as redis:
        monkeypatch.setenv("REDIS_PASSWORD", "s3cret")
        url = redis.url.replace("redis://", "redis://:${REDIS_PASSWORD}@")
        tiny = {**TINY, "seed": 8, "lake": LAKE}
        write_params(recipe, {**tiny, "cache": {"hot": {"url": url, "timeout_ms": 10_000}}})
        env = {**s3.env, "REDIS_PASSWORD": "s3cret"}
        make_shards(recipe)
        shards = train_shards(recipe)
        assert len(shards) > 3

        done = run("shardline", "cache", "warm", "--tier", "hot", cwd=recipe, env=env)
        assert done.stdout.startswith(f"{len(shards)} shards, ")
        ws = Workspace.open(recipe)
        # Both ranks of two fill this node from Redis: the lake isn't read again.
        parts = [warm(ws, "both", rank, 2) for rank in (0, 1)]
        assert [part["lake"] for part in parts] == [0, 0]
        assert NodeCache(recipe / ".shardline" / "cache", 0).digests() == shards

        show(ws, as_json=True)
        shown = json.loads(capsys.readouterr().out)
        assert shown["node"]["bytes"] == shown["hot"]["bytes"] == sum(shards.values())
        assert shown["node"]["items"] == shown["hot"]["items"] == len(shards)
        assert shown["hot"]["budget"] == 1 << 30
        assert 0 < shown["hot"]["hit_ratio"] < 1
        done = run("shardline", "cache", "show", cwd=recipe, env=env)
        assert "hit ratio" in done.stdout
        assert "s3cret" not in done.stdout + done.stderr

        budget = 2.5 * max(shards.values())
        small = {"node": {"folder": "small", "budget_mb": budget / (1 << 20), "ring_mb": 0}}
        write_params(recipe, {**tiny, "cache": small})
        part = warm(Workspace.open(recipe))
        assert 1 <= part["shards"] < len(shards) == part["shards"] + part["left"]
        there = NodeCache(recipe / "small", 0).digests()
        assert len(there) == part["shards"]
        assert there == first_of(order_of_training(ws), shards, budget)
        assert there != first_of(list(shards), shards, budget), "a bad example: as the manifest lists them"

        drop(ws, "hot")
        assert redis.client.hlen("{shardline}:sizes") == 0
        assert not redis.client.keys("shardline:part:*")
        drop(ws, "node", everything=True)
        assert NodeCache(recipe / ".shardline" / "cache", 0).digests() == {}
        assert capsys.readouterr().out.count("dropped") == 2


def test_tiers_that_are_off_are_named(run: Run, recipe: Path) -> None:
    assert "Set cache.node.enabled" in run("shardline", "cache", "warm", cwd=recipe, code=2).stderr
    for url, named in (("http://:secret@host", "cache.hot.url"), ("redis://:${NOT_SET}@host", "NOT_SET")):
        write_params(recipe, {**TINY, "cache": {"hot": {"url": url}}})
        with pytest.raises(ParamsError, match=named) as caught:
            warm(Workspace.open(recipe))
        assert "secret" not in str(caught.value)


@pytest.mark.xdist_group("prefect")
@pytest.mark.long
def test_the_pipeline_warms_before_it_trains(
    run: Run, prefect: Prefect, project: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the embedded server, which is there while the stages run, and no longer. This training looks for it only."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    command = "test -e .shardline/valkey/url && ls .shardline/cache/shardline/objects > trained"
    train = {"cmd": command, "deps": ["data/shards"], "outs": ["trained"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": train}}))
    write_params(project, {**TINY, "lake": {"url": "s3://lake/pipeline"}, "cache": {"hot": {"url": "embedded"}}})
    make_shards(project)
    done = run(sys.executable, "-m", "flows.pipeline", "--no-push", cwd=project, env=prefect.env | s3.env)
    assert "are at hand" in done.stdout + done.stderr
    there = {Path(name).stem for name in (project / "trained").read_text().split()}
    assert there == set(train_shards(project))
    assert not (project / ".shardline" / "valkey" / "url").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(project) in " ".join(p.info["cmdline"] or [])]

    drop(Workspace.open(project), "node")
    done = run(sys.executable, "-m", "flows.warm", "--tier", "node", cwd=project, env=prefect.env | s3.env)
    assert "are at hand" in done.stdout + done.stderr
    assert NodeCache(project / ".shardline" / "cache", 0).digests() == train_shards(project)
