"""The examples of a trainer of one's own: killed or stopped in the middle of an epoch and run again, they end as if
nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from support import trainer_runs
from support.training_samples import make_points, make_text, outs, train_params

from pipelines.workspace import Workspace

#: 70 rows in batches of 16: each epoch ends with its fifth batch, a short one.
POINTS = {"model": {"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}}}
#: 17 windows in batches of 4, likewise.
TEXT = {"documents": 6, "stream": {"batch_size": 4, "seq_len": 16}}
NAMES, RUNS = ("with_accelerate", "with_lightning", "with_transformers"), ("whole", "killed", "stopped")
SETTINGS = {"steps": 13, "checkpoint_every": 3, "eval_every": 5, "log_every": 1}


def batches(ws: Workspace) -> list[list[Any]]:
    return [json.loads(line) for line in (ws.root / "batches.jsonl").read_text().splitlines()]


def make(root: Path, name: str, run: str) -> Workspace:
    settings: dict[str, Any] = {"train": train_params(**SETTINGS, entrypoint=f"{name}:train")}
    if name == "with_transformers":
        llama = {"name": f"{name}:Llama", "args": {"dim": 16, "layers": 1, "heads": 2}}
        return make_text(root / name / run, **TEXT, **settings, model=llama)
    return make_points(root / name / run, **POINTS, **settings)


@pytest.mark.long
def test_the_examples_resume_exactly_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """One process for all of them, since importing the frameworks costs more than the trainings."""
    made = {name: {run: make(tmp_path, name, run) for run in RUNS} for name in NAMES}
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("", "tests", "examples"))
    done = subprocess.run(
        [sys.executable, trainer_runs.__file__, *(str(tmp_path / name) for name in NAMES)],
        env=os.environ | {"PYTHONPATH": path}, text=True, capture_output=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name, workspaces in made.items():
        assert f"{name}: exit code 143: Training stopped by SIGTERM: the entry point" in done.stdout
        [whole] = batches(workspaces["whole"])
        assert len(whole) == 13
        for run, handed_out, resumed in (("killed", 8, 6), ("stopped", 9, 9)):
            first, second = batches(workspaces[run])
            assert first == whole[:handed_out], name
            assert second == whole[resumed:], f"{name}: the samples of each step that was left, and no batch again"
            assert outs(workspaces[run]) == outs(workspaces["whole"]), name
            kept = workspaces[run].state / "entrypoint"
            assert not list(kept.iterdir()), f"{name}: checkpoints of a finished training"
