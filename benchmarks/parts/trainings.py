"""A training of its own for benchmarks of checkpoints, in a process of its own.

python -m benchmarks.parts.trainings pause ROOT ROUNDS     what saves cost: one JSON object on the last line; it leaves
                                                           a checkpoint of 99 % of the steps
python -m benchmarks.parts.trainings run ROOT              train; a line `step N` after each step
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import yaml

from pipelines.console.progress import say
from pipelines.training.loop import fit, forward_backward
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.workspace import Workspace
from storage.errors import Interrupted
from storage.manifest import Manifest
from storage.shards import SUFFIX, encode_tokens

STEPS = 1000
VOCABULARY = 8192
MODEL = {"dim": 512, "layers": 8, "heads": 8}  # 29.5 million parameters
TINY = {"dim": 32, "layers": 1, "heads": 2}
SEQ_LEN = 64


def make(root: Path, *, tiny: bool) -> Workspace:
    """A recipe in `root` with its shards: a language model on random tokens."""
    values: dict[str, Any] = {name: {} for name in ("lake", "curate", "shard", "evaluate", "package")} | {
        "recipe": "checkpoint", "seed": 1, "ingest": {"sources": ["none"]}, "promote": {"gate": {"metric": "loss"}},
        "stream": {"batch_size": 4, "seq_len": SEQ_LEN},
        "model": {"name": "transformer", "args": TINY if tiny else MODEL},
        "train": {"steps": STEPS, "checkpoint_every": STEPS, "log_every": STEPS, "eval_every": STEPS, "device": "cpu"},
    }  # fmt: skip
    (root / ".dvc").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    ws = Workspace.open(root)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY - 1, 1 << 19).astype(np.uint16)
    stored = ws.zone("shards").publish(encode_tokens(tokens, np.array([0, len(tokens)]), ["random"]), SUFFIX)
    record = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": 1, "split": "train"}
    record |= {"tokens": len(tokens), "stats": None, "key": stored.digest}
    spec = {"vocab_size": VOCABULARY, "dtype": "uint16", "separator": VOCABULARY - 1, "encoding": "bytes"}
    manifest = Manifest.build("shards", [record], kind="tokens", spec=spec, counts={}, parents={})
    ws.zone("shards").commit(manifest)
    return ws


class Steps(Reporter):
    """Says each step."""

    def step(self, seconds: float, waited: float, work: int) -> None:
        self.since.steps += 1
        say(f"step {self.since.steps}")


def run(ws: Workspace) -> int:
    """Train as a job does, but for MLflow. Returns the exit code."""
    with stop_on_signals(StopRequest()) as stop, open_session(ws, Ranks()) as session:
        say(f"restored {session.state.step}")
        try:
            fit(session, Steps(None, lambda *_, **__: None, "tokens", session.goal.steps), stop)
        except Interrupted as error:
            return error.exit_code
    return 0


def late(session: Session) -> None:
    """Leave a checkpoint that says it was taken at 99 % of the steps."""
    session.state.step, done = STEPS * 99 // 100, session.data.stream.state_dict()
    epoch, place = divmod(session.state.step, len(session.data.stream))
    session.data.stream.load_state_dict(done | {"epoch": epoch, "step": place})
    session.save(wait=True)


def step(session: Session) -> float:
    """One step. Returns its seconds."""
    began = perf_counter()
    forward_backward(session, next(iter(session.data.stream)))
    session.learner.optimizer.step()
    session.learner.optimizer.zero_grad()
    session.state.step += 1
    return perf_counter() - began


def pause(ws: Workspace, rounds: int) -> dict[str, Any]:
    """Seconds that training stands still for a save: in the background, and waited for; and what torch's own does.

    In turns, in the same process. `slower` is by how much the steps during a save in the background take longer in
    all, since it shares the cores with them.
    """
    with open_session(ws, Ranks()) as session:
        saver = session.checkpoints.saver
        found: dict[str, list[float]] = {}
        for turn in range(rounds + 1):
            plain = median(step(session) for _ in range(3))
            before, began = saver.paused, perf_counter()
            session.save()
            during: list[float] = []
            while saver.busy or not during:
                during.append(step(session))
            readings = {
                "background": saver.paused - before,
                "write": perf_counter() - began,
                "slower": sum(during) - len(during) * plain,
                "steps": plain,
                "waited": _seconds(lambda: session.save(wait=True)),
            }
            readings |= torch_saves(session, ws.state / "torch")
            if turn:  # the first one makes the buffers
                for name, seconds in readings.items():
                    found.setdefault(name, []).append(seconds)
        size = sum(file.stat().st_size for file in saver.zone.folder.glob("objects/*")) // 2
        late(session)
    medians = {name: median(values) for name, values in found.items()}
    return {"seconds": medians, "bytes": size, "parameters": session.learner.parameters, "all": found}


def torch_saves(session: Session, folder: Path) -> dict[str, float]:
    """The same state by torch's own `async_save` and `save` into files: until the call returns."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import async_save, save

    shutil.rmtree(folder, ignore_errors=True)
    found = {}

    def state() -> dict[str, Any]:
        model, optimizer = get_state_dict(session.learner.model, session.learner.optimizer)
        return {"model": model, "optimizer": optimizer}

    futures: list[Any] = []
    found["torch background"] = _seconds(
        lambda: futures.append(async_save(state(), storage_writer=FileSystemWriter(folder / "a"), no_dist=True))
    )
    futures[0].result()
    found["torch waited"] = _seconds(lambda: save(state(), storage_writer=FileSystemWriter(folder / "b"), no_dist=True))
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def main(mode: str, root: str, rounds: str = "3") -> int:
    ws = Workspace.open(Path(root))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        if mode == "run":
            return run(ws)
        print(json.dumps(pause(ws, int(rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
