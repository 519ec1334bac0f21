"""Whether a model may enter the registry at all: not out of an experiment, nor from code that no commit holds."""

import json
import os

from pipelines.tracking.lineage import uncommitted
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
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return (
            f"{', '.join(changed[:3])}{more} differ from the last commit, so that no commit would say what the model "
            "comes from; it stays with its run. To register it: commit, `shardline repro`"
        )
    return None


def waits(ws: Workspace) -> bool:
    """Whether the last `promote` registered nothing for such a reason, and there is none any more. DVC can't know."""
    if not ws.promotion.is_file() or not ws.package.is_dir():
        return False
    return json.loads(ws.promotion.read_text()).get("version", 0) is None and why_not(ws) is None
