"""Asking and telling DVC, one stage at a time: what is stale, and what a stage left behind.

`dvc repro` does both by itself. The flows run the stages elsewhere, and record each with `dvc commit -f STAGE`, which
leaves the same dvc.lock.
"""

import json
import shutil
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pipelines.ingest.fetch import changed_sources
from pipelines.release.eligibility import waits
from pipelines.reproduce.dvc_process import outs, pipeline
from pipelines.reproduce.writer import exclusive
from pipelines.runtime.own_code import PIPELINE
from pipelines.workspace import Workspace


def stages(ws: Workspace) -> dict[str, str]:
    """Stage → command of the recipe's dvc.yaml, each after those that it depends on; otherwise as written."""
    written = pipeline(ws)
    makers = {path: name for name, stage in written.items() for path in outs(stage)}
    graph = {
        name: {makers[made] for dep in stage.get("deps", []) for made in makers if _overlap(dep, made)}
        for name, stage in written.items()
    }
    return {name: str(written[name]["cmd"]) for name in TopologicalSorter(graph).static_order()}


def stale(ws: Workspace) -> dict[str, list[str]]:
    """Stage → what changed, for the stages that `dvc repro` would run first: those whose own dependencies, parameters,
    outs or command differ from dvc.lock. What depends on them is known once they have run."""
    with exclusive(ws) as dvc:
        report = json.loads(dvc("status", "--json", PIPELINE))
    found = {name: [reason for entry in entries for reason in _reasons(entry)] for name, entries in report.items()}
    return found | ({"promote": ["the model may be registered now"]} if not found and waits(ws) else {})


def stale_sources(ws: Workspace) -> list[str]:
    """What changed in the sources of ingest, in words. DVC can't watch globs and object stores."""
    changed = changed_sources(ws)
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [f"source files changed: {', '.join(changed[:3])}{more}"] if changed else []


def clear_outs(ws: Workspace, stage: str) -> None:
    """Remove a stage's outs before it runs, as `dvc repro` does; those with `persist: true` stay."""
    for path, persist in outs(pipeline(ws)[stage]).items():
        target = ws.root / path
        if persist:
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def record(ws: Workspace, stage: str) -> None:
    """Write what is there of a stage, its dependencies and outs, to dvc.lock and DVC's cache."""
    with exclusive(ws) as dvc:
        dvc("commit", "--force", f"{PIPELINE}:{stage}")


def remote(ws: Workspace) -> str | None:
    """The name of DVC's default remote, if one is configured."""
    with exclusive(ws) as dvc:
        return dvc("config", "core.remote").strip() or None


def push(ws: Workspace) -> str:
    """Upload what the default remote lacks of the recipe's outs. Returns DVC's closing line."""
    with exclusive(ws) as dvc:
        lines = dvc("push", PIPELINE).splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or lies in it."""
    a, b = Path(one), Path(other)
    return a == b or a in b.parents or b in a.parents


def _reasons(entry: Any) -> Iterator[str]:
    """`{"changed deps": {"data/raw": "modified"}}` → 'data/raw modified'."""
    if not isinstance(entry, dict):
        yield str(entry)
        return
    for changes in entry.values():
        for what, how in changes.items():
            if isinstance(how, dict):
                yield from (f"{name} {state}" for name, state in how.items())
            else:
                yield f"{what} {how}"
