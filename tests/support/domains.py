"""A tiny recipe with two domains, and its data stages."""

import re
from pathlib import Path
from typing import Any

import yaml
from conftest import REPOSITORY, TINY, write_params

from pipelines.ingest import data_stage
from pipelines.ingest.stage import Summary, journal_of, run
from pipelines.workspace import Workspace
from storage.manifest import Manifest

PAGE = (REPOSITORY / "docs" / "mixtures.md").read_text()
[SECTIONS] = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
[SNIPPET] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STAGES = ("ingest", "curate", "shard")
SOURCES = {"code": ["texts/**/*.txt"], "prose": ["books/*.md", "letters.jsonl"]}
MIXTURE = {"code": 3.0, "prose": {2: 1.0, 8: 5.0}}
TRAIN = {
    "steps": 12, "eval_every": 12, "checkpoint_every": 4, "log_every": 2, "lr": 0.003, "threads": 1, "eval_batches": 3,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Workspace:
    """The tiny recipe with two domains, one of files and JSON lines."""
    params = {**TINY, "ingest": {"sources": SOURCES}, "train": TRAIN, "curate": {**TINY["curate"], "reader": "text"}}  # type: ignore[dict-item]
    write_params(folder, {**params, **changes})
    return Workspace.open(folder)


def make(ws: Workspace) -> list[Summary]:
    return [run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in STAGES]


def shards(ws: Workspace) -> Manifest:
    return ws.zone("shards").manifest()
