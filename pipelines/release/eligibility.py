"""Whether a model may enter the registry at all: not out of an experiment, nor from code that no commit holds, nor of
other code than today's."""

import json
import os

from pipelines.release.fingerprint import ARTIFACTS, OWN_CODE
from pipelines.runtime.own_code import changed_since
from pipelines.tracking.lineage import uncommitted, unknown_to_git
from pipelines.workspace import Workspace

#: What DVC sets in the environment of an experiment's stages.
EXPERIMENT = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")


def why_not(ws: Workspace) -> str | None:
    """Why `promote` registers nothing now, and what to do; None where it may."""
    name = os.environ.get("DVC_EXP_NAME")
    if any(os.environ.get(variable) for variable in EXPERIMENT):
        apply = f"`dvc exp apply {name}`" if name else "`dvc exp apply`"
        return (
            f"this is the experiment {name or '(without a name)'}, whose model stays with its run. To register it: "
            f"{apply}, commit, `shardline repro`"
        )
    changed = uncommitted(ws)
    if changed:
        return (
            f"{_some(changed)} differ from the last commit, so that no commit would say what the model "
            "comes from; it stays with its run. To register it: commit, `shardline repro`"
        )
    if unknown := unknown_to_git(ws):
        return (
            f"git does not know {_some(unknown)}, code of your own that the recipe runs, so that no commit would say "
            "what the model comes from; it stays with its run. To register it: "
            f"`git add {' '.join(unknown[:3])}` (--force what is ignored), commit, `shardline repro`"
        )
    if different := _other_code(ws):
        return (
            f"it was trained with other code than today's, {_some(different)}, which the present commit would be taken "
            "for. To register it: `shardline repro`, which trains again, or go back to that code"
        )
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _other_code(ws: Workspace) -> list[str]:
    """What differs between today's code and what data/package was trained with, as far as it says that."""
    try:
        config = json.loads((ws.package / ARTIFACTS / "config.json").read_text())
        return changed_since(ws, config["model"]["name"], config[OWN_CODE]) if config.get(OWN_CODE) else []
    except (OSError, ValueError, KeyError, TypeError):  # what reads it whole says what is wrong with it
        return []


def waits(ws: Workspace) -> bool:
    """Whether the last `promote` registered nothing for such a reason, and there is none any more. DVC can't know."""
    if not ws.promotion.is_file() or not ws.package.is_dir():
        return False
    return json.loads(ws.promotion.read_text()).get("version", 0) is None and why_not(ws) is None
