"""For tests of tracking and release: tiny workspaces of each kind, with models that need no training, and MLflow."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from support.servers import answers, wait_for

from pipelines.models import ModelConfig, build_model, save_model
from pipelines.models.saved import weights
from pipelines.runtime.own_code import code_behind
from pipelines.workspace import Workspace
from storage.manifest import Manifest
from storage.shards import SUFFIX, encode_samples, encode_tokens

TEXT = {"vocab_size": 257, "dtype": "uint16", "separator": 256, "encoding": "bytes"}
IMAGE = {
    "inputs": {"x": {"dtype": "uint8", "shape": [8, 8, 1]}}, "target": {"name": "label", "dtype": "int64"},
    "classes": ["dark", "light"], "features": None, "image_mode": "L", "mean": [127.0], "std": [70.0],
}  # fmt: skip
TABLE = {
    "inputs": {"x": {"dtype": "float32", "shape": [3]}}, "target": {"name": "label", "dtype": "int64"},
    "classes": ["0", "1"], "features": ["width", "mean area", "height"], "image_mode": None,
    "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0],
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {"text": TEXT, "image": IMAGE, "table": TABLE}
MODELS: dict[str, dict[str, Any]] = {
    "text": {"name": "transformer", "args": {"dim": 16, "layers": 1, "heads": 2}},
    "image": {"name": "mlp", "args": {}},
    "table": {"name": "mlp", "args": {}},
}
TASKS = {"text": "language", "image": "classification", "table": "classification"}
GATES: dict[str, dict[str, Any]] = {
    "text": {"metric": "bits_per_byte", "mode": "min"},
    "image": {"metric": "accuracy", "min_gain": 0.01},
    "table": {"metric": "accuracy"},
}


def make_workspace(root: Path, kind: str = "image", *, rows: int = 40, seed: int = 0, **changes: Any) -> Workspace:
    """A recipe of `kind` in `root` whose shards and untrained model (of `seed`) are there."""
    (root / ".dvc").mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "recipe": f"{kind}_test", "seed": 0, "ingest": {"sources": ["data/*"]}, "model": MODELS[kind],
        "lake": {}, "curate": {}, "shard": {}, "evaluate": {}, "package": {},
        "train": {"steps": 1, "device": "cpu", "threads": 1}, "stream": {"seq_len": 16},
        "promote": {"gate": GATES[kind]},
    } | changes  # fmt: skip
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    ws = Workspace.open(root)
    write_shards(ws, kind, rows)
    write_model(ws, seed=seed)
    return ws


def write_shards(ws: Workspace, kind: str, rows: int) -> Manifest:
    """Shards with a train and a test split of `rows` samples each, made up but repeatable."""
    zone = ws.zone("shards")
    records = []
    for number, split in enumerate(("train", "test")):
        random = np.random.default_rng([number, rows])
        ids = [f"{split}-{row}" for row in range(rows)]
        tokens = 0
        if kind == "text":
            text = np.frombuffer(b"the cat sat on the mat. " * 3, np.uint8)
            documents = np.concatenate([[256], text]).astype(np.uint16)
            stream, offsets = np.tile(documents, rows), np.arange(rows + 1) * len(documents)
            data, tokens = encode_tokens(stream, offsets, ids), len(stream)
        else:
            labels = random.integers(0, 2, rows)
            noise = random.integers(0, 100, (rows, *SPECS[kind]["inputs"]["x"]["shape"]))
            inputs = noise + 120 * labels.reshape(rows, *([1] * (noise.ndim - 1)))
            dtype = SPECS[kind]["inputs"]["x"]["dtype"]
            data = encode_samples({"x": inputs.astype(dtype), "label": labels}, ids)
        stored = zone.publish(data, SUFFIX)
        records.append({"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows,
                        "key": f"k{number}", "split": split, "tokens": tokens or None, "stats": None})  # fmt: skip
    header = {"kind": "tokens" if kind == "text" else "samples", "spec": SPECS[kind], "parents": {}, "counts": {}}
    return zone.commit(Manifest.build("shards", records, **header))


def write_model(ws: Workspace, *, seed: int = 0, bias: float | None = None, run_id: str | None = None) -> None:
    """data/model with weights of `seed`; `bias` pushes a classifier to its last class. Then its evaluation."""
    manifest = ws.zone("shards").manifest()
    spec, params = manifest.header["spec"], ws.params
    seq_len = params.stream.seq_len if "vocab_size" in spec else None
    module = build_model(params.model.name, params.model.args, spec, seq_len, seed=seed)
    state = weights(module)
    if bias is not None:
        last = [name for name in state if name.endswith("bias")][-1]
        state[last][-1] += bias
    task = "language" if "vocab_size" in spec else "classification"
    config = ModelConfig(params.model.model_dump(), spec, seq_len, task, manifest.digest)
    save_model(ws.model, state, replace(config, code=code_behind(params.model.name, ws)))
    reference = {"run_id": run_id, "experiment": params.recipe, "tracking_uri": ws.tracking_uri}
    (ws.model / "run.json").write_text(json.dumps(reference))


def write_metrics(ws: Workspace, **metrics: Any) -> None:
    """metrics/evaluate.json, made up."""
    file = ws.metrics("evaluate")
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"split": ws.params.evaluate.split, "manifest": ws.zone("shards").manifest().digest}
    file.write_text(json.dumps(about | metrics))


def place_store(ws: Workspace, database: Path) -> None:
    """Give the workspace a copy of `database` as its embedded store: that saves MLflow's migrations."""
    folder = ws.project / ".shardline" / "mlflow"
    folder.mkdir(parents=True)
    shutil.copy(database, folder / "mlflow.db")


@contextmanager
def mlflow_server(folder: Path, database: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A real server over `database`, in a session of its own so that all of it can be killed."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    folder.mkdir(parents=True)
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/health", 200), "MLflow server")
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
