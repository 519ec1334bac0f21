"""Trains a workspace in many layouts on ranks that are started once.

    results = run_layouts(workspace, {"name": {"train": {…}, "model": {…}}}, ranks=2, folder=tmp_path / "two")

python tests/support/layout_ranks.py FOLDER starts the ranks; FOLDER/job.json says what they train.
"""

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.own_layout import run_own
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.params import Params
from pipelines.training.loop import fit
from pipelines.training.parallelism import SharedScaler
from pipelines.training.parallelism.gradients import held
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.workspace import Workspace
from storage.digest import digest_bytes
from storage.errors import Interrupted, ShardlineError

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 240  # seconds
STOPPED = "stopped"  # of a case: {"steps": n}, after which it is stopped and started again
Case = dict[str, dict[str, Any]]


def changed(ws: Workspace, sections: Case) -> Workspace:
    """The workspace with other values in some sections."""
    values = ws.params.model_dump()
    for name, section in sections.items():
        values[name] = values[name] | section
    return Workspace(ws.root, ws.project, Params.model_validate(values))


def stopped_after(ws: Workspace, ranks: Ranks, steps: int) -> None:
    """Train so many steps, as if a signal came in the last of them: what is left is a checkpoint."""
    stop = StopRequest()
    done = iter(range(1, steps))

    def advance(*_: Any, **__: Any) -> None:
        if next(done, None) == steps - 1:
            stop.note(signal.SIGTERM, None)

    with open_session(ws, ranks) as session, suppress(Interrupted):
        fit(session, Reporter(None, advance, "", session.goal.steps), stop)
        raise AssertionError("it was not stopped")


def run_case(ws: Workspace, ranks: Ranks) -> dict[str, Any]:
    """Train to the end. Gives the curves, the final weights' names, sums and digest, and what `alike` and `counting`
    say. Of a trainer of one's own: what `own_layout.train` gives."""
    if ws.params.train.entrypoint is not None:
        return run_own(ws, ranks)
    with open_session(ws, ranks) as session:
        collectives = counting(session)
        fit(session, Reporter(None, lambda *_, **__: None, "", session.goal.steps), StopRequest())
        weights = session.final_weights()
        sampler = session.learner.gradient_sync.sampler
        return {
            "loss": [point["train_loss"] for point in session.state.train_curve],
            "norm": [point["gradient_norm"] for point in session.state.train_curve],
            "val": [point["val_loss"] for point in session.state.val_curve],
            "names": sorted(weights),
            "sent": session.learner.gradient_sync.traffic.bytes,
            "busy": session.learner.gradient_sync.traffic.seconds,
            "sampled": sampler._busy if sampler is not None else 0.0,
            "communication_share": sampler.share() if sampler is not None else None,
            "weights": [float(weights[name].double().abs().sum()) for name in sorted(weights)],
            "digest": digest_bytes(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))),
            "alike": alike(session),
            "collectives": dict(collectives),
        }


class Collectives(TorchDispatchMode):
    """Counts what DDP and FSDP send: allreduce_, _reduce_scatter_base_, _allgather_base_, …"""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._schema.name.partition("::")[2].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def counting(session: Session) -> Counter[str]:
    """What rank 0's backward passes send, by name; counted while the training runs."""
    counts: Counter[str] = Counter()
    backward = session.learner.runner.backward

    def counted(*args: Any) -> Any:
        with Collectives(counts):
            return backward(*args)

    session.learner.runner.backward = counted
    return counts


def alike(session: Session) -> bool:
    """Whether every parameter that several ranks hold whole is the same on all of them, to the last bit."""
    pieces = {name: held(p.detach()) for name, p in session.learner.model.named_parameters()}
    mine = {
        name: piece.numpy().tobytes().hex()
        for name, piece in pieces.items()
        if piece.numel() == session.learner.model.get_parameter(name).numel()
    }
    if session.group.ranks.world == 1:
        return True
    everywhere: list[dict[str, str]] = [{}] * session.group.ranks.world
    dist.all_gather_object(everywhere, mine)
    return all(held[name] == mine[name] for held in everywhere for name in held.keys() & mine.keys())


def steps_after_an_overflow_on_the_last_rank(ranks: Ranks) -> float:
    """Whether rank 0's optimiser went on (1) when another rank's gradient was infinite."""
    weight = torch.zeros(1, requires_grad=True)
    scaler, optimizer = SharedScaler("cpu", enabled=True), torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full((1,), float("inf") if ranks.rank == ranks.world - 1 else 1.0)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    return float(weight.detach().abs() > 0)


def run_layouts(ws: Workspace, cases: dict[str, Case], ranks: int, folder: Path) -> dict[str, Any]:
    """What `run_case` gives for each case on so many ranks; {"error": text} for one that Shardline refuses."""
    return run_groups(ws, {ranks: cases}, folder)[ranks]


def run_groups(ws: Workspace, groups: dict[int, dict[str, Case]], folder: Path) -> dict[int, dict[str, Any]]:
    """The same for several numbers of ranks, one after the other. One process imports torch, and the ranks fork from
    it: that takes most of the time otherwise."""
    folder.mkdir()
    job = {"root": str(ws.root), "params": ws.params.model_dump(), "groups": groups}
    (folder / "job.json").write_text(json.dumps(job))
    env = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-W", "error::UserWarning", __file__, str(folder)]
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(DEADLINE)
        assert process.returncode == 0, "\n".join(log.read_text() for log in sorted(folder.glob("rank-*.txt")))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return {ranks: json.loads((folder / f"results-{ranks}.json").read_text()) for ranks in groups}


def start(folder: Path) -> int:
    """Fork the ranks of each group, and wait for them. Returns the first exit code that is not 0."""
    for module in ("_dynamo", "distributed.fsdp", "distributed.pipelining", "distributed.tensor.parallel"):
        importlib.import_module(f"torch.{module}")
    job = json.loads((folder / "job.json").read_text())
    for world, cases in job["groups"].items():
        children = [child for rank in range(int(world)) if (child := fork_rank(folder, job, rank, int(world), cases))]
        for _ in children:
            _, status = os.wait()
            if status:
                return 1
    return 0


def fork_rank(folder: Path, job: dict[str, Any], rank: int, world: int, cases: dict[str, Case]) -> int:
    """The process id of a new rank, whose errors go to a file."""
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        with (folder / f"rank-{world}-{rank}.txt").open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        code = 1
        try:
            be_a_rank(folder, job, world, cases)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def be_a_rank(folder: Path, job: dict[str, Any], world: int, cases: dict[str, Case]) -> None:
    ranks = Ranks.from_environment()
    faulthandler.dump_traceback_later(DEADLINE - 20)  # where a rank hangs
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=world)
    ws = Workspace(Path(job["root"]), Path(job["root"]), Params.model_validate(job["params"]))
    results: dict[str, Any] = {"overflow": steps_after_an_overflow_on_the_last_rank(ranks)}
    for name, sections in cases.items():
        began = time.perf_counter()
        stopped = sections.pop(STOPPED, None)
        try:
            case = changed(ws, sections)
            if stopped:
                stopped_after(case, ranks, stopped["steps"])
            results[name] = run_case(case, ranks)
        except ShardlineError as error:
            results[name] = {"error": str(error)}
        results[name]["seconds"] = time.perf_counter() - began
    if ranks.leads:
        (folder / f"results-{world}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1])))
