"""Real windows of real trainings, each made so that another part bounds it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training_samples import make_points, make_text

from pipelines.profiling.bottleneck import Bottleneck, judge
from pipelines.profiling.capture import FOUND, TRACE, Capture, Found, watch
from pipelines.profiling.profile import figures
from pipelines.profiling.trace import read_trace
from pipelines.workspace import Workspace
from storage.manifest import Manifest
from storage.shards import SUFFIX, encode_samples

#: A model that looks at the first number of each sample only.
GLANCING = """
from torch import nn

class Model(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.layer = nn.Linear(1, num_classes)

    def forward(self, x):
        return self.layer(x[:, :1])
"""


def bottleneck_of(ws: Workspace, folder: Path, **settings: Any) -> tuple[Bottleneck, Found]:
    capture = Capture(ws.root, ws.project, ws.params, folder, warm_up=3, seconds=0.4, **settings)
    watch(capture)
    found = Found.model_validate_json((folder / FOUND).read_text())
    return judge(figures(ws, found, read_trace(folder / TRACE))), found


def largest(bottleneck: Bottleneck, wanted: str) -> str:
    """The largest part. A busy machine adds to overhead, so that this counts only where it is wanted."""
    shares = bottleneck.figures.shares
    return max((part for part in shares if part != "overhead" or wanted == "overhead"), key=shares.__getitem__)


def make_wide(root: Path) -> Workspace:
    """128 samples of 512 KiB, batches not prepared ahead: copying 64 of them takes longer than this model's step."""
    root.mkdir(exist_ok=True)
    (root / "glancing.py").write_text(GLANCING)
    ws = make_points(root, model={"name": "glancing:Model"}, stream={"batch_size": 64}, compute={"prefetch": 0})
    x = np.zeros((128, 128 << 10), np.float32)
    data = encode_samples({"x": x, "label": np.arange(128) % 4}, [str(i) for i in range(128)])
    stored = ws.zone("shards").publish(data, SUFFIX)
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": 128, "split": "train"}
    spec = {
        "inputs": {"x": {"dtype": "float32", "shape": [128 << 10]}}, "target": {"name": "label", "dtype": "int64"},
        "classes": list("abcd"),
    }  # fmt: skip
    records = [about | {"tokens": 0, "stats": None, "key": stored.digest}]
    ws.zone("shards").commit(Manifest.build("shards", records, kind="samples", spec=spec, counts={}, parents={}))
    return ws


def test_a_slow_source_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bottleneck, found = bottleneck_of(make_wide(tmp_path), tmp_path)
    assert bottleneck.bound == "data"
    assert bottleneck.figures.shares["data"] == pytest.approx(sum(found.steps.waits) / sum(found.steps.seconds))
    assert "compute.prefetch" in bottleneck.advice[0].change
    assert max(found.stream, key=lambda part: found.stream[part]) == "gather"


@pytest.mark.parametrize(
    ("hidden", "batch", "bound"), [([4], 16, "overhead"), ([768, 768], 1, "memory"), ([768, 768], 512, "compute")]
)
def test_the_size_of_a_model_and_of_its_batches(hidden: list[int], batch: int, bound: str, tmp_path: Path) -> None:
    ws = make_points(
        tmp_path, rows=(1024, 4, 4), model={"name": "mlp", "args": {"hidden": hidden}}, stream={"batch_size": batch}
    )
    for _ in range(3):  # other programs may take the cores in the middle of a window
        bottleneck, found = bottleneck_of(ws, tmp_path)
        if largest(bottleneck, bound) == bound:
            break
    assert largest(bottleneck, bound) == bound
    widths = [4, *hidden, 4]
    products = sum(a * b for a, b in pairwise(widths))
    # forward, gradients of the weights, and (but for the first layer) of the inputs: 2 operations a weight and sample
    assert found.flops == 2 * batch * (3 * products - widths[0] * widths[1])
    assert bottleneck.figures.utilisation == found.flops / bottleneck.figures.step_seconds / found.peaks["float32"]
    assert min(found.peaks.values()) > 0


def test_the_flops_of_attention_count(tmp_path: Path) -> None:
    """A block's attention: 2 products of [T, D] and [T, T] forward, 5 backward, for each sample and head."""
    ws = make_text(tmp_path)
    _, found = bottleneck_of(ws, tmp_path, steps=2)
    dim, hidden, vocabulary, tokens = 16, 64, 257, 8 * 16
    weights = 4 * dim * dim + 3 * dim * hidden + dim * vocabulary
    attention = 7 * 2 * 8 * 2 * 16 * 16 * (dim // 2)
    assert found.flops == 2 * 3 * tokens * weights + attention
