"""Trains a workspace in many layouts on ranks that are started once.

    curves = run_layouts(workspace, {"name": {"train": {…}, …}}, ranks=2)

python tests/layout_ranks.py FOLDER is one of the ranks; FOLDER/cases.json says what they train.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipelines.params import Params
from pipelines.training.loop import fit
from pipelines.training.ranks import Ranks
from pipelines.training.reporting import Reporter
from pipelines.training.session import open_session
from pipelines.training.signals import StopRequest
from pipelines.workspace import Workspace

REPOSITORY = Path(__file__).parents[1]
DEADLINE = 240  # seconds


def changed(ws: Workspace, sections: dict[str, dict[str, Any]]) -> Workspace:
    """The workspace with other values in some sections."""
    values = ws.params.model_dump()
    for name, section in sections.items():
        values[name] = values[name] | section
    return Workspace(ws.root, ws.project, Params.model_validate(values))


def run_case(ws: Workspace, ranks: Ranks) -> dict[str, Any]:
    """Train to the end; the curves, the collectives of the training, and a fingerprint of the final weights."""
    with open_session(ws, ranks) as session:
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
        }


def run_layouts(ws: Workspace, cases: dict[str, dict[str, dict[str, Any]]], ranks: int, folder: Path) -> dict[str, Any]:
    """What `run_case` gives for each case on `ranks` ranks; {"error": text} for a case that raised."""
    folder.mkdir()
    (folder / "cases.json").write_text(
        json.dumps({"root": str(ws.root), "params": ws.params.model_dump(), "cases": cases})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-W", "error::UserWarning", __file__, str(folder)]
    processes = [
        subprocess.Popen(
            command, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=DEADLINE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def main(folder: Path) -> None:
    job = json.loads((folder / "cases.json").read_text())
    ranks = Ranks.from_environment()
    dist.init_process_group("gloo")
    ws = Workspace(Path(job["root"]), Path(job["root"]), Params.model_validate(job["params"]))
    results = {}
    for name, sections in job["cases"].items():
        began = time.perf_counter()
        results[name] = run_case(changed(ws, sections), ranks) | {"seconds": time.perf_counter() - began}
    if ranks.leads:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
