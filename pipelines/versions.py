"""Asking and telling DVC, one stage at a time: what is stale, and what a stage left behind.

`dvc repro` does both by itself. The flows run the stages elsewhere, and record each with `dvc commit -f STAGE`, which
leaves the same dvc.lock.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from pipelines.ingest.fetch import changed_sources
from pipelines.locks import alone
from pipelines.release.eligible import waits
from pipelines.repro import PIPELINE, start_dvc
from pipelines.workspace import Workspace
from storage.errors import FormatError, ShardlineError

_TO_LEAVE = 10.0  # seconds that DVC has after SIGINT
_OUTS = ("outs", "metrics", "plots")


def stages(ws: Workspace) -> dict[str, str]:
    """Stage → command of the recipe's dvc.yaml, each after those that it depends on; otherwise as written."""
    written = _pipeline(ws)
    makers = {path: name for name, stage in written.items() for path in _outs(stage)}
    graph = {
        name: {makers[made] for dep in stage.get("deps", []) for made in makers if _overlap(dep, made)}
        for name, stage in written.items()
    }
    return {name: str(written[name]["cmd"]) for name in TopologicalSorter(graph).static_order()}


def stale(ws: Workspace) -> dict[str, list[str]]:
    """Stage → what changed, for the stages that `dvc repro` would run first: those whose own dependencies, parameters,
    outs or command differ from dvc.lock. What depends on them is known once they have run."""
    report = json.loads(_dvc(ws, "status", "--json", PIPELINE))
    found = {name: [reason for entry in entries for reason in _reasons(entry)] for name, entries in report.items()}
    return found | ({"promote": ["the model may be registered now"]} if not found and waits(ws) else {})


def stale_sources(ws: Workspace) -> list[str]:
    """What changed in the sources of ingest, in words. DVC can't watch globs and object stores."""
    changed = changed_sources(ws)
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [f"source files changed: {', '.join(changed[:3])}{more}"] if changed else []


def clear_outs(ws: Workspace, stage: str) -> None:
    """Remove a stage's outs before it runs, as `dvc repro` does; those with `persist: true` stay."""
    for path, persist in _outs(_pipeline(ws)[stage]).items():
        target = ws.root / path
        if persist:
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def record(ws: Workspace, stage: str) -> None:
    """Write what is there of a stage, its dependencies and outs, to dvc.lock and DVC's cache."""
    _dvc(ws, "commit", "--force", f"{PIPELINE}:{stage}")


def remote(ws: Workspace) -> str | None:
    """The name of DVC's default remote, if one is configured."""
    return _dvc(ws, "config", "core.remote").strip() or None


def push(ws: Workspace) -> str:
    """Upload what the default remote lacks of the recipe's outs. Returns DVC's closing line."""
    return _last_line(_dvc(ws, "push", PIPELINE))


_held: dict[Path, int] = {}


@contextmanager
def exclusive(ws: Workspace) -> Iterator[None]:
    """Held by one process at a time for a recipe's folder, so that two runs don't mix their outs; may be nested within
    a process. The system frees it when its holder dies."""
    file = ws.state / "writer.lock"
    if _held.get(file):
        _held[file] += 1
        try:
            yield
        finally:
            _held[file] -= 1
        return
    with alone(file, ws.root):
        _held[file] = 1
        try:
            yield
        finally:
            del _held[file]


def _dvc(ws: Workspace, *arguments: str) -> str:
    """What a DVC command printed. Waits for other DVC commands to release the lock. Raises ShardlineError."""
    process = start_dvc(
        ws.root, "--wait-for-lock", *arguments,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate()
    except BaseException:
        _let_go(process)
        raise
    if process.returncode:
        raise ShardlineError(
            f"`dvc {' '.join(arguments)}` failed in {ws.root} (exit code {process.returncode}): "
            f"{_last_line(err) or _last_line(out)}. Run it by hand there to see more."
        )
    return str(out)


def _let_go(process: "subprocess.Popen[Any]") -> None:
    """End DVC so that it leaves its files in order: SIGINT, which it handles, and time."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_TO_LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _pipeline(ws: Workspace) -> dict[str, dict[str, Any]]:
    file = ws.root / PIPELINE
    written = (yaml.safe_load(file.read_text()) or {}).get("stages", {})
    for name, stage in written.items():
        if not isinstance(stage.get("cmd"), str):
            raise FormatError(
                f"{file}: stage {name!r} is not one command (`foreach`, `matrix` or a list). The flows need "
                "one; `dvc repro` runs the others."
            )
    return dict(written)


def _outs(stage: dict[str, Any]) -> dict[str, bool]:
    """Path → whether it persists, of a stage's outs, metrics and plots."""
    entries = [entry for section in _OUTS for entry in stage.get(section, [])]
    options = [entry if isinstance(entry, dict) else {entry: {}} for entry in entries]
    return {path: bool((about or {}).get("persist")) for entry in options for path, about in entry.items()}


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
