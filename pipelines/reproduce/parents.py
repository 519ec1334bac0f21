"""Whether a zone was made of what lies beside it: `dvc repro` sees to that, a stage that is run alone doesn't."""

from contextlib import suppress

from pipelines.console.progress import say
from pipelines.workspace import Workspace
from storage.errors import ShardlineError

_MAKERS = {"curated": "curate", "shards": "shard"}  # zone → its stage


def tell_of_other_parents(ws: Workspace, name: str) -> None:
    """Say in a line which parents that zone `name` was made of aren't those that are there now. A zone without a
    manifest, or with a damaged one, says nothing here: who reads it does."""
    found: dict[str, tuple[str, str]] = {}
    with suppress(ShardlineError):
        manifest = ws.zone(name).manifest()
        for parent, digest in manifest.header.get("parents", {}).items():
            with suppress(ShardlineError):
                if (present := ws.zone(parent).manifest().digest) != digest:
                    found[parent] = digest, present
        if found:
            made = " and ".join(f"{parent} {was[:12]}" for parent, (was, _) in found.items())
            there = " and ".join(f"{parent} {now[:12]}" for parent, (_, now) in found.items())
            say(
                f"{name} {manifest.digest[:12]} was made of {made}, but there is {there} now. To make it anew: "
                f"`dvc repro {_MAKERS[name]}`."
            )
