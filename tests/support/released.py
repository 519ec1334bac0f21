"""For tests of release: a model that is trained, evaluated, packaged and promoted, without training."""

import io

import numpy as np
import yaml
from PIL import Image
from support.release_samples import MODELS, write_metrics, write_model, write_shards

from pipelines.release import package, promote
from pipelines.tracking import connect, open_run
from pipelines.workspace import Workspace


def train(ws: Workspace, **model) -> str:
    """As the train stage: a run, and data/model that names it."""
    with open_run(ws) as run:
        write_model(ws, run_id=run.id, **model)
    return run.id


def release(ws: Workspace, accuracy: float, **model) -> dict:
    """Train (untrained weights of `seed`), evaluate (made up), package, promote."""
    train(ws, **model)
    write_metrics(ws, accuracy=accuracy)
    package(ws)
    return promote(ws)


def png(level: int = 200, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def add_recipe(ws: Workspace, kind: str) -> Workspace:
    """Another recipe of the same project, released."""
    folder = ws.project / "recipes" / f"{kind}_test"
    folder.mkdir(parents=True)
    values = yaml.safe_load((ws.root / "params.yaml").read_text())
    values |= {"recipe": f"{kind}_test", "model": MODELS[kind], "promote": {"gate": {"metric": "accuracy"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    other = Workspace.open(folder)
    write_shards(other, kind, 20)
    release(other, 0.8)
    return other


def versions(ws: Workspace) -> list[int]:
    found = connect(ws).client.search_model_versions("name = 'image_test'")
    return sorted(int(version.version) for version in found)


OWN_MODEL = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self, *, in_features: int, num_classes: int):
        super().__init__()
        self.head = torch.nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.head(x.float().flatten(1))
"""
