"""The recipes whose training the benchmark `step` runs: their shards, made once, in a project of their own."""

import os
from pathlib import Path
from typing import Any

import yaml

from benchmarks.setting import ROOT
from pipelines.ingest import data_stage
from pipelines.ingest.stage import journal_of, run
from pipelines.params import load_params
from pipelines.workspace import Workspace

NEVER = 10**9  # steps
#: No evaluation, no checkpoint, a learning rate that moves nothing: what remains is the step.
TRAIN = {"steps": NEVER, "eval_every": NEVER, "checkpoint_every": NEVER, "lr": 1e-9, "patience": None, "device": "cpu"}
#: For tests: a few sources, small models.
TINY_SOURCES = {"python_lm": "{python_stdlib}/json/*.py", "digits": "{sklearn_digits}/**/*1.png"}

TINY_MODELS: dict[str, dict[str, Any]] = {
    "python_lm": {"dim": 16, "layers": 1, "heads": 1},
    "digits": {"channels": [4]},
}


def workspace(recipe: str, data: Path, tiny: bool) -> Workspace:
    """The recipe of this repository with `TRAIN` instead of its own settings, in `data/step`, its shards made."""
    project = data / ("step-tiny" if tiny else "step")  # one project, so that they share MLflow's store
    (project / ".dvc").mkdir(parents=True, exist_ok=True)
    folder = project / recipe
    folder.mkdir(exist_ok=True)
    source = ROOT / "params.yaml" if recipe == "python_lm" else ROOT / "recipes" / recipe / "params.yaml"
    values: dict[str, Any] = load_params(source).model_dump(mode="json")
    values["train"] |= TRAIN | {"epochs": None}
    if tiny:
        values["ingest"]["sources"] = [TINY_SOURCES[recipe]]
        values["model"]["args"] |= TINY_MODELS[recipe]
        values["stream"]["seq_len"] = 32
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    ws = Workspace.open(folder)
    if not ws.zone("shards").complete:
        for name in ("ingest", "curate", "shard"):
            run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the embedded store
    return ws
