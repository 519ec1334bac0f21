"""Trains a workspace in many layouts on ranks that are started once.

    results = run_layouts(workspace, {"name": {"train": {…}, "model": {…}}}, ranks=2, folder=tmp_path / "two")

python tests/layout_ranks.py FOLDER is one of the ranks; FOLDER/cases.json says what they train.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.params import Params
from pipelines.training.loop import fit
from pipelines.training.parallelism import SharedScaler
from pipelines.training.parallelism.gradients import held
from pipelines.training.ranks import Ranks
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.training.signals import StopRequest
from pipelines.workspace import Workspace
from storage.errors import ShardlineError

REPOSITORY = Path(__file__).parents[1]
DEADLINE = 240  # seconds
Case = dict[str, dict[str, Any]]


def changed(ws: Workspace, sections: Case) -> Workspace:
    """The workspace with other values in some sections."""
    values = ws.params.model_dump()
    for name, section in sections.items():
        values[name] = values[name] | section
    return Workspace(ws.root, ws.project, Params.model_validate(values))


def run_case(ws: Workspace, ranks: Ranks) -> dict[str, Any]:
    """Train to the end. Gives the curves, the final weights' names and sums, and what `alike` and `counting` say."""
    with open_session(ws, ranks) as session:
        collectives = counting(session)
        fit(session, Reporter(None, lambda *_, **__: None, "", session.steps), StopRequest())
        weights = session.final_weights()
        return {
            "loss": [point["train_loss"] for point in session.state.train_curve],
            "norm": [point["gradient_norm"] for point in session.state.train_curve],
            "val": [point["val_loss"] for point in session.state.val_curve],
            "names": sorted(weights),
            "sent": session.exchange.wire.bytes,
            "busy": session.exchange.wire.seconds,
            "weights": [float(weights[name].double().abs().sum()) for name in sorted(weights)],
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
    backward = session.runner.backward

    def counted(*args: Any) -> Any:
        with Collectives(counts):
            return backward(*args)

    session.runner.backward = counted
    return counts


def alike(session: Session) -> bool:
    """Whether every parameter that several ranks hold whole is the same on all of them, to the last bit."""
    pieces = {name: held(p.detach()) for name, p in session.model.named_parameters()}
    mine = {
        name: piece.numpy().tobytes().hex()
        for name, piece in pieces.items()
        if piece.numel() == session.model.get_parameter(name).numel()
    }
    if session.ranks.world == 1:
        return True
    everywhere: list[dict[str, str]] = [{}] * session.ranks.world
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
    folder.mkdir()
    job = {"root": str(ws.root), "params": ws.params.model_dump(), "cases": cases}
    (folder / "cases.json").write_text(json.dumps(job))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-W", "error::UserWarning", __file__, str(folder)]
    logs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stderr:
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=env | place, stderr=stderr))
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(DEADLINE) == 0, log.read_text()
    finally:
        for process in processes:
            process.kill()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def main(folder: Path) -> None:
    job = json.loads((folder / "cases.json").read_text())
    ranks = Ranks.from_environment()
    dist.init_process_group("gloo")
    ws = Workspace(Path(job["root"]), Path(job["root"]), Params.model_validate(job["params"]))
    results: dict[str, Any] = {"overflow": steps_after_an_overflow_on_the_last_rank(ranks)}
    for name, sections in job["cases"].items():
        try:
            results[name] = run_case(changed(ws, sections), ranks)
        except ShardlineError as error:
            results[name] = {"error": str(error)}
    if ranks.leads:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
