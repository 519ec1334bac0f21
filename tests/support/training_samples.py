"""Workspaces for tests of training: shards made here, learnable in a few steps, and no MLflow.

python tests/support/training_samples.py ROOT        trains the workspace in ROOT in a process of its own
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.workspace import Workspace
from storage.manifest import Manifest
from storage.shards import SUFFIX, encode_samples, encode_tokens

TEXT = {"vocab_size": 257, "dtype": "uint16", "separator": 256, "encoding": "bytes"}
SEQ_LEN = 16

#: A model that sends its own process a signal in training step AT (counted from 1 in this process), once dropout has
#: made its randomness matter.
SIGNALLING = """
import os, signal
from torch import nn

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, num_classes))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == int(os.environ.get("SIGNAL_AT", "0")):
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return self.layers(x)
"""


#: `SIGNALLING`, in a training that notes the ids of each step's samples in a file of its rank.
NOTING = """
import json, os
from pathlib import Path
from pipelines.training import loop
from signalling import Model

forward_backward = loop.forward_backward

def noting(session, batch):
    ids = batch.ids()
    ranks = session.group.ranks
    with (Path(__file__).parent / f"ids-{ranks.world}-{ranks.rank}.jsonl").open("a") as file:
        file.write(json.dumps([session.state.step, ids]) + "\\n")
    return forward_backward(session, batch)

loop.forward_backward = noting
"""


def train_params(**changes: Any) -> dict[str, Any]:
    return {
        "steps": 12, "lr": 1e-2, "eval_every": 4, "checkpoint_every": 3, "log_every": 2, "threads": 1, "device": "cpu",
    } | changes  # fmt: skip


def make_text(root: Path, *, documents: int = 24, separator: int | None = 256, **changes: Any) -> Workspace:
    """A language task: documents of lower-case letters that mostly count upwards; 3 train shards. Each document begins
    with token 256, whatever the manifest calls the separator; with None they are their bytes alone."""
    ws = _open(root, {"stream": {"batch_size": 8, "seq_len": SEQ_LEN}, **_transformer(), **changes})
    rng, spec = np.random.default_rng(5), TEXT | {"separator": separator}
    begin = [] if separator is None else [256]
    if separator is None:
        spec = {name: value for name, value in TEXT.items() if name != "separator"} | {"vocab_size": 256}
    records = []
    for split, count in (("train", documents), ("val", 4), ("test", 4)):
        for part in np.array_split(np.arange(count), 3 if split == "train" else 1):
            texts = [_counting(rng) for _ in part]
            tokens = np.concatenate([np.append(begin, text) for text in texts]).astype(np.uint16)
            offsets = np.concatenate([[0], np.cumsum([len(begin) + len(text) for text in texts])])
            data = encode_tokens(tokens, offsets, [f"{split}/{i}.txt" for i in part])
            records.append(_record(ws, data, split, len(part), len(tokens)))
    ws.zone("shards").commit(Manifest.build("shards", records, kind="tokens", spec=spec, counts={}, parents={}))
    return ws


def make_points(
    root: Path, *, rows: tuple[int, int, int] = (70, 24, 24), target: str = "class", **changes: Any
) -> Workspace:
    """Four features; the class is the quadrant of the first two of them, the value their sum. 3 train shards."""
    ws = _open(root, {"stream": {"batch_size": 16}, "model": {"name": "mlp", "args": {"hidden": [16]}}, **changes})
    rng = np.random.default_rng(6)
    records = []
    for split, count in zip(("train", "val", "test"), rows, strict=True):
        for part in np.array_split(np.arange(count), 3 if split == "train" else 1):
            if not len(part):
                continue
            x = rng.normal(3, 2, (len(part), 4)).astype(np.float32)
            quadrant = (x[:, 0] > 3) * 2 + (x[:, 1] > 3)
            label = quadrant.astype(np.int64) if target == "class" else (x[:, 0] + x[:, 1]).astype(np.float32)
            data = encode_samples({"x": x, "label": label}, [f"{split}:{i}" for i in part])
            records.append(_record(ws, data, split, len(part), 0))
    spec = {
        "inputs": {"x": {"dtype": "float32", "shape": [4]}},
        "target": {"name": "label", "dtype": "int64" if target == "class" else "float32"},
        "classes": ["sw", "nw", "se", "ne"] if target == "class" else None,
        "features": list("abcd"), "mean": [3.0] * 4, "std": [2.0] * 4,
    }  # fmt: skip
    ws.zone("shards").commit(Manifest.build("shards", records, kind="samples", spec=spec, counts={}, parents={}))
    return ws


def with_domains(ws: Workspace) -> Manifest:
    """Its shards in two domains, code and prose; the val split's shard is the test split's second one."""
    manifest = ws.zone("shards").manifest()
    records = [record | {"domain": "code"} for record in manifest.records()]
    for record in records:
        if record["split"] == "val":
            record |= {"split": "test", "domain": "prose"}
    return Manifest.build(
        "shards", records, **{k: v for k, v in manifest.header.items() if k not in ("format", "zone")}
    )


def make_signalling(root: Path, **changes: Any) -> Workspace:
    """`make_points` with the model that sends itself a signal; its module lies in the workspace."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "signalling.py").write_text(SIGNALLING)
    return make_points(root, model={"name": "signalling:Model"}, **changes)


def with_train(ws: Workspace, **changes: Any) -> Workspace:
    """The same workspace with other `train` parameters."""
    values = yaml.safe_load((ws.root / "params.yaml").read_text())
    values["train"] = values["train"] | changes
    (ws.root / "params.yaml").write_text(yaml.safe_dump(values))
    return Workspace.open(ws.root)


def outs(ws: Workspace) -> dict[str, bytes]:
    """The bytes of all that a training leaves, but for the run's id."""
    files = [
        ws.model / "model.safetensors", ws.model / "config.json", ws.metrics("train"),
        ws.plots("train.csv"), ws.plots("val.csv"),
    ]  # fmt: skip
    return {str(file.relative_to(ws.root)): file.read_bytes() for file in files}


def losses(ws: Workspace) -> list[float]:
    """The train curve."""
    lines = ws.plots("train.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def without_mlflow() -> None:
    """Give trainings of this process a run that records nothing (tests of tracking use the real thing)."""
    import pipelines.tracking

    pipelines.tracking.open_run = lambda ws, **_: pipelines.tracking.Run(ws.params.recipe, "nowhere")


def _transformer() -> dict[str, Any]:
    return {"model": {"name": "transformer", "args": {"dim": 16, "layers": 1, "heads": 2}}}


def _open(root: Path, changes: dict[str, Any]) -> Workspace:
    (root / ".dvc").mkdir(parents=True, exist_ok=True)
    changes = changes | {"train": train_params(**changes.get("train", {}))}
    base = {"recipe": "test", "seed": 3, "ingest": {"sources": ["x"]}, "promote": {"gate": {"metric": "accuracy"}}}
    # Through JSON, so that what is shared in Python isn't an alias in YAML.
    values = json.loads(
        json.dumps(base | {n: {} for n in ("lake", "curate", "shard", "evaluate", "package")} | changes)
    )
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    return Workspace.open(root)


def _counting(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    length = int(rng.integers(30, 60))
    steps = np.where(rng.random(length) < 0.9, 1, rng.integers(0, 26, length))
    return 97 + np.cumsum(steps) % 26


def _record(ws: Workspace, data: Any, split: str, rows: int, tokens: int) -> dict[str, Any]:
    stored = ws.zone("shards").publish(data, SUFFIX)
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows}
    return about | {"split": split, "tokens": tokens, "stats": None, "key": stored.digest}


if __name__ == "__main__":
    from pipelines.training import train
    from storage.errors import ShardlineError

    os.chdir(sys.argv[1])
    without_mlflow()
    try:
        train(Workspace.open())
    except ShardlineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
