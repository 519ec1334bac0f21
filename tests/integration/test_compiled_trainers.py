"""The examples of a trainer of one's own with torch.compile, in each framework's way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.training_samples import make_points, make_text, train_params

from pipelines.workspace import Workspace

#: What somebody who compiles changes in an example: the text, and what it becomes.
CHANGES = {
    "with_accelerate": [("Accelerator(", 'Accelerator(dynamo_backend="inductor", ')],
    "with_lightning": [("job, job.build_model()", "job, torch.compile(job.build_model())")],
    "with_transformers": [('report_to="none"', 'torch_compile=True, report_to="none"')],
}
SCRIPT = """
from torch._dynamo.utils import counters
from support.training_samples import without_mlflow
from pipelines.models import Own, load_model
from pipelines.training import train
from pipelines.workspace import Workspace

without_mlflow()
ws = Workspace.open()
train(ws)
assert counters["stats"]["unique_graphs"], "nothing was compiled"
load_model(ws.model, Own.of(ws.params, ws.root))
"""
SETTINGS = {"steps": 4, "checkpoint_every": 2, "eval_every": 2, "log_every": 1}


def make(root: Path, name: str) -> Workspace:
    settings = {"train": train_params(**SETTINGS, entrypoint=f"{name}:train")}
    if name == "with_transformers":
        model = {"name": f"{name}:Llama", "args": {"dim": 16, "layers": 1, "heads": 2}}
        ws = make_text(root, documents=6, stream={"batch_size": 4, "seq_len": 16}, model=model, **settings)
    else:
        ws = make_points(root, model={"name": "mlp", "args": {"hidden": [16]}}, **settings)
    text = (REPOSITORY / "examples" / f"{name}.py").read_text()
    for before, after in CHANGES[name]:
        assert text.count(before) == 1
        text = text.replace(before, after)
    (root / f"{name}.py").write_text(text)
    return ws


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES)
def test_a_compiled_model_is_saved_under_the_plain_models_names(tmp_path: Path, name: str) -> None:
    ws = make(tmp_path, name)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ws.root, env=os.environ | {"PYTHONPATH": path},
        text=True, capture_output=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
