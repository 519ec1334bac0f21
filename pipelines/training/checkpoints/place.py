"""Where a training's checkpoints lie, and whose they are.

Trainings of one key come to the same result, but each keeps checkpoints of its own: several clones may share a lake.
What is shared therefore has a folder for each owner, `<url>/<key>/<owner>`. A clone draws an owner when it begins a
training, and remembers it in .shardline/owners/<key> from the first checkpoint on; so does every machine of a job. The
same command goes on in the same clone, and nowhere else. Who has no disk that outlives a job gives the owner a name:
SHARDLINE_OWNER, or train.checkpoints.owner.
"""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.progress import say
from pipelines.params import Params
from pipelines.params.environment import expand
from pipelines.training.checkpoints.manifest import FILENAME
from pipelines.training.process.process_group import Ranks
from pipelines.workspace import STATE, Aside, Workspace
from storage.atomic import write_atomically
from storage.errors import FormatError, LakeError, ParamsError
from storage.lake import Zone
from storage.named import NamedFiles

VARIABLE = "SHARDLINE_OWNER"
OWNERS = "owners"  # in the project's state: a file for each training, named by its key
_NAME = re.compile(r"(?!step-|objects$)[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_COMPLETE = re.compile(rf"(?:([^/]+)/)?step-(\d{{8,}})/{re.escape(FILENAME)}")
_NOBODY = ""  # an owner of checkpoints from before there were owners


@dataclass(frozen=True)
class Place:
    """`zone` holds the checkpoints of one training of `owner`, which `file` remembers; None where nobody needs to."""

    zone: Zone
    owner: str = _NOBODY
    file: Path | None = None

    def remember(self) -> None:
        """So that the same command finds what is saved from now on."""
        if self.file is None or _read(self.file) == self.owner:
            return
        try:
            write_atomically(self.file, self.owner.encode())
        except LakeError as error:
            say(f"{error} Unless {VARIABLE}={self.owner} is set, a restart won't find this training's checkpoints.")


def find_place(ws: Workspace, key: str, ranks: Ranks) -> Place:
    """Where the checkpoints of the training with `key` lie: in this clone, or below train.checkpoints.url or a remote
    lake. All ranks call it together. Raises ParamsError, FormatError, LakeError."""
    url = _url(ws)
    folder = ws.state / "checkpoints" / key
    timeout = ws.params.compute.lake_timeout
    if url is None:
        return Place(Zone(folder, timeout=timeout))
    shared = Zone(folder, f"{url.rstrip('/')}/{key}", timeout=timeout)
    file = ws.project / STATE / OWNERS / key
    given = _given(ws.params)
    known = [name for name in ranks.gather(None if given else _read(file)) if name is not None]
    owner = ranks.share((given or _choose(shared, known)) if ranks.leads else None)
    zone = Zone(folder, f"{shared.url}/{owner}" if owner else shared.url, timeout=timeout)
    return Place(zone, owner, None if given else file)


def _url(ws: Workspace) -> str | None:
    """What is not this clone's alone. A trial beside the trainings has nothing to do with theirs."""
    lake, url = ws.params.lake.url, ws.params.train.checkpoints.url
    remote = lake is not None and "://" in lake and not lake.startswith(("file://", "local://"))
    if url is None and lake is not None and remote and not isinstance(ws, Aside):
        url = f"{lake.rstrip('/')}/{ws.params.recipe}/checkpoints"
    return url if url is None or "://" in url else str(ws.root / url)


def _given(params: Params, environment: Mapping[str, str] = os.environ) -> str | None:
    setting = "train.checkpoints.owner"
    name = environment.get(VARIABLE) or expand(setting, params.train.checkpoints.owner, environment)
    if name is not None and not _NAME.fullmatch(name):
        raise ParamsError(
            f"{VARIABLE if environment.get(VARIABLE) else setting}={name!r}: expected up to 64 letters, digits, '.', "
            "'_' or '-' that don't start as a step's folder does."
        )
    return name


def _read(file: Path) -> str | None:
    try:
        name = file.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{file}: can't be read ({error}). {_HELP}") from error
    if name != _NOBODY and not _NAME.fullmatch(name):
        raise FormatError(f"{file}: {name!r} is no owner of checkpoints. {_HELP}")
    return name


_HELP = "Write the owner of this training's checkpoints into it, or delete it to start the training again."


def _choose(shared: Zone, known: list[str]) -> str:
    """The owner that the machines know; of several, whoever came furthest. Where none does, a new one."""
    if len(set(known)) == 1:
        return known[0]
    there = newest(shared)
    if known:
        return max(known, key=lambda name: there.get(name, -1))
    if _NOBODY in there:
        say(f"going on with the checkpoints of an earlier version of Shardline in {shared.describe()}")
        return _NOBODY
    if there:
        found = ", ".join(f"{name} (step {step})" for name, step in sorted(there.items()))
        say(
            f"{shared.describe()} has checkpoints of the same training by other owners: {found}. This one begins anew "
            f"and leaves them alone. If one of them was started here and is over, {VARIABLE} goes on from there."
        )
    return secrets.token_hex(8)


def newest(shared: Zone) -> dict[str, int]:
    """Owner → step of the newest checkpoint that is complete."""
    found: dict[str, int] = {}
    for path in NamedFiles(shared).paths():
        if complete := _COMPLETE.fullmatch(path):
            owner = complete[1] or _NOBODY
            found[owner] = max(found.get(owner, 0), int(complete[2]))
    return found
