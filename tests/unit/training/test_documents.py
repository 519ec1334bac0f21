"""`stream.document_mask` from the parameter to the model, its evaluation and a trainer of one's own."""

import json
import sys
from itertools import pairwise
from math import log, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_samples import SEQ_LEN, TEXT, losses, make_points, make_text, without_mlflow
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.evaluation import evaluate_model
from pipelines.models import ModelConfig, Own, load_model
from pipelines.models.document_mask import DocumentMask
from pipelines.profiling.replay import replay
from pipelines.training import train
from storage.errors import ParamsError
from storage.shards import Shard

STREAM = {"batch_size": 8, "seq_len": SEQ_LEN, "document_mask": True}
OWN = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, *, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, x):
        return self.table(x)

class Told(Plain):
    def forward(self, x, *, positions):
        assert positions.shape == x.shape and positions.dtype == torch.int64
        assert bool((positions[x == 256] == 0).all()), "a document begins with 256"
        return self.table(x)

def own(job):
    model = job.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step, batch in zip(range(job.steps), job.train):
        assert batch["count"] == int((batch["targets"] != -100).sum()) < batch["targets"].numel()
        answers = model(batch["inputs"], positions=batch["positions"])
        (job.loss(answers, batch["targets"]) * batch["weight"]).backward()
        optimizer.step()
    job.log(job.validate(model), job.steps)
    job.save_model(model)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "told", raising=False)
    without_mlflow()


def test_a_model_of_ones_own_gets_what_it_names(tmp_path: Path) -> None:
    ws = make_text(tmp_path / "ws", model={"name": "told:Told"}, stream=STREAM)
    train(ws)
    own = Own.of(ws.params)
    model, config = load_model(ws.model, own)
    assert config.document_mask
    zone = ws.zone("shards")
    found = evaluate_model(model, config, zone, zone.manifest(), ws.params)
    blind, _ = load_model(ws.model, own)
    blind.forward = lambda x: blind.table(x)  # its answers don't depend on what it is told
    same = ModelConfig(config.model, TEXT, SEQ_LEN, "language", config.manifest)
    assert found == evaluate_model(blind, same, zone, zone.manifest(), ws.params), "the same tokens are charged"
    again = replay(ws, 2)
    assert again.loss == pytest.approx(np.mean([loss for _, loss in again.samples]), rel=1e-4)


def test_a_model_that_takes_neither_is_refused(tmp_path: Path) -> None:
    ws = make_text(tmp_path / "ws", model={"name": "told:Plain"}, stream=STREAM)
    with pytest.raises(
        ParamsError, match=r"stream\.document_mask=true, but Plain\.forward takes neither documents nor"
    ):
        train(ws)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch imports its compiler
def test_a_compiled_model_gets_what_the_plain_one_names() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor, *, positions: Tensor) -> Tensor:
            return x + positions

    compiled: Any = torch.compile(Told())
    assert DocumentMask(apart=True, separator=256).given_to(compiled).takes == ("positions",)


def test_samples_have_no_documents(tmp_path: Path) -> None:
    ws = make_points(tmp_path / "ws", stream={"batch_size": 8, "document_mask": True})
    with pytest.raises(ParamsError, match=r"stream\.document_mask=true, but these shards hold samples"):
        train(ws)
    with pytest.raises(ParamsError, match="document_mask = true keeps documents of a sequence apart, but with samples"):
        make_text(tmp_path / "text", stream=STREAM | {"samples": "documents"})


def test_a_trainer_of_ones_own_is_given_them(tmp_path: Path) -> None:
    settings = {"entrypoint": "told:own", "steps": 3}
    ws = make_text(tmp_path / "ws", model={"name": "told:Told"}, stream=STREAM, train=settings, separator=0)
    assert train(ws)["val_loss"] == pytest.approx(log(257), rel=0.1)


def test_a_saved_model_says_so_only_where_it_is(tmp_path: Path) -> None:
    for documents in (False, True):
        ws = make_text(tmp_path / str(documents), train={"steps": 2}, stream=STREAM | {"document_mask": documents})
        train(ws)
        assert ("document_mask" in json.loads((ws.model / "config.json").read_text())) is documents
        assert len(losses(ws)) == 1


def test_held_out_documents_are_measured_as_if_each_stood_alone(tmp_path: Path) -> None:
    """The transformer's nats of each piece of a document in a window by itself, and 8 bits for what begins one."""
    ws = make_text(tmp_path / "ws", stream=STREAM, separator=None)
    zone = ws.zone("shards")
    manifest = zone.manifest()
    config = ModelConfig(
        ws.params.model.model_dump(), manifest.header["spec"], SEQ_LEN, "language", "", document_mask=True
    )
    model = config.build(0).eval()
    metrics = evaluate_model(model, config, zone, manifest, ws.params)

    [path] = manifest.select("test")["path"].to_pylist()
    shard = Shard.open(zone.local_path(path))
    nats, count = 0.0, 0
    cuts = sorted({*shard.offsets.tolist(), *range(0, len(shard.tokens), SEQ_LEN)})
    for start, stop in pairwise(cuts):
        ends = stop in shard.offsets
        piece = torch.from_numpy(shard.tokens[start : stop + (not ends)].astype(np.int64))[None]
        if piece.shape[1] > 1:
            with torch.no_grad():
                answers = model(piece[:, :-1])
            nats += float(F.cross_entropy(answers[0], piece[0, 1:], reduction="sum"))
            count += piece.shape[1] - 1
    assert metrics["loss"] == pytest.approx(nats / count, abs=2e-6)
    assert count + 4 == len(shard.tokens)
    bits = nats / log(2) + 8 * 4
    assert metrics["bits_per_byte"] == pytest.approx(bits / metrics["bytes"], abs=2e-6)
    assert metrics["bytes"] == len(shard.tokens)
    assert metrics["bits_per_byte"] < log2(257) * 1.1
