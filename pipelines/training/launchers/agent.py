"""The process between a launcher and its ranks: torchrun's agent, which doesn't outlive the launcher.

python -m pipelines.training.launchers.agent FOLDER LAUNCHER_PID
"""

import json
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.params import Compute
from pipelines.runtime import gc_tuning
from pipelines.runtime.listeners import use_interface
from pipelines.runtime.loopback import LOOPBACK
from pipelines.runtime.parent_death import AGENT_PID, die_with_parent
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.placement import Placement, place
from pipelines.training.launchers.rendezvous import arguments, hosted
from pipelines.training.launchers.watchdog.stacks import RECORDER
from pipelines.training.launchers.watchdog.watchdog import Late, Watchdog, kill
from storage.atomic import write_atomically
from storage.errors import Hung, ShardlineError

FAILURE, HUNG = "failure.json", "hung.json"


def main(folder: str, launcher: str) -> int:
    """Run the ranks; the first failure goes to failure.json. Returns the exit code, that of `Hung` where it was one."""
    die_with_parent(int(launcher))
    gc_tuning.rest()
    job = Job.load(Path(folder))
    compute, placement = job.workspace.params.compute, place(job.workspace.params, job.ranks)
    _prepare_environment(compute, placement)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as torchrun

    ended: set[int] = set()
    try:
        with (
            Watchdog(Path(folder), compute.hang_timeout_s, partial(end_hung, Path(folder), ended)),
            hosted(placement.meeting),
        ):
            torchrun([*arguments(folder, job, placement), "-m", "pipelines.training.launchers.main", folder])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        _fail(folder, rank=rank, exit_code=first.exitcode, process=first.pid)
        return Hung.exit_code if first.pid in ended else 1
    except RendezvousError as error:
        _fail(folder, rendezvous=f"{type(error).__name__}: {error}")
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def end_hung(folder: Path, ended: set[int], text: str, late: list[Late]) -> None:
    """Kill hung ranks, whose processes join `ended`; what follows is torchrun's affair: it starts them again, or fails.

    Whether it can be said (hung.json, stderr) doesn't matter to that: the disk may be full, which may be why they hang.
    """
    processes = [rank.sign.pid for rank in late]
    try:
        with suppress(OSError):
            print(f"shardline: {text}", file=sys.stderr, flush=True)
        _write(folder / HUNG, {"message": text, "processes": processes})
    finally:
        ended.update(processes)
        kill(late)


def _prepare_environment(compute: Compute, placement: Placement) -> None:
    os.environ[AGENT_PID] = str(os.getpid())
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # the launcher reports failures, and shorter
    os.environ.setdefault(RECORDER, "2000")
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(compute.grace_s)
    # Shared, the ranks' store lives on over a restart in torch 2.13, and with it the addresses of ranks that are dead:
    # the new ones then wait for these (docs/decisions/0018).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    use_interface(placement.meeting.address if placement.meeting else LOOPBACK)


def _fail(folder: str, **about: object) -> None:
    _write(Path(folder) / FAILURE, about)


def _write(file: Path, about: dict[str, Any]) -> None:
    """Whole or, on a full disk, not at all: the launcher then goes by the exit code."""
    with suppress(OSError, ShardlineError):
        write_atomically(file, json.dumps(about).encode())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
