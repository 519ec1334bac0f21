"""What a launcher is given, and what it promises."""

import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.params import Params
from pipelines.workspace import Workspace
from storage.digest import digest_json

if TYPE_CHECKING:
    from pipelines.training.process.process_group import Ranks

FILENAME = "job.json"
TRAIN = "pipelines.training.worker:train_rank"


@dataclass(frozen=True)
class Job:
    """A training to run on `ranks` processes of this machine, or, on several machines, of each.

    work: what each rank does, a function `package.module:name` of (workspace, ranks, **args); torchrun's alone may be
    another than training.
    """

    workspace: Workspace
    ranks: int
    work: str = TRAIN
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same on every machine with the same recipe, parameters and data."""
        params = self.workspace.params
        values = params.model_dump(mode="json", exclude={"compute", "cache"})
        digest = digest_json({"manifest": self.workspace.zone("shards").manifest().digest, **values})
        return f"{params.recipe}-{digest[:16]}"

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`."""
        ws = self.workspace
        values = {
            "root": str(ws.root),
            "project": str(ws.project),
            "params": ws.params.model_dump(mode="json"),
            "ranks": self.ranks,
            "work": self.work,
            "args": self.args,
        }
        (folder / FILENAME).write_text(json.dumps(values))

    @classmethod
    def load(cls, folder: Path) -> "Job":
        values = json.loads((folder / FILENAME).read_text())
        params = Params.model_validate_json(json.dumps(values["params"]))
        workspace = Workspace(Path(values["root"]), Path(values["project"]), params)
        return cls(workspace, values["ranks"], values["work"], values["args"])

    def do(self, ranks: "Ranks") -> None:
        """What a rank does, in its process."""
        module, _, name = self.work.partition(":")
        getattr(import_module(module), name)(self.workspace, ranks, **self.args)


class Launcher(Protocol):
    """Starts the ranks of a job and waits for them.

    It returns when every rank has finished. It raises what stopped them: a rank's ShardlineError as it was; Interrupted
    when they saved their state after a signal (which it forwards to them); ShardlineError naming the rank, its exit
    code and its last lines otherwise. Whatever happens, no process that it started lives on.

    `folder` is the job's own, for the ranks' logs and reports. A launcher that submits to a cluster fits in as well: it
    submits, waits, and raises what the ranks' reports say.
    """

    def launch(self, job: Job, folder: Path) -> None: ...
