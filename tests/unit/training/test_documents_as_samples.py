"""Training, evaluation and generation with whole documents as samples: padding counts nowhere."""

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_samples import TEXT, losses, make_text, outs, without_mlflow
from torch.nn import functional as F

from pipelines.evaluation import evaluate_model
from pipelines.evaluation.stage import evaluate
from pipelines.models import ModelConfig, load_model, task_of, with_loss
from pipelines.models.predictor import Predictor
from pipelines.models.saved import load_config
from pipelines.models.tasks import IGNORED
from pipelines.params import Train
from pipelines.profiling.replay import replay
from pipelines.training import train
from pipelines.training.data.loader import Loader
from pipelines.training.loop import forward_backward
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session
from pipelines.workspace import Workspace
from storage.shards import Shard

SEQ_LEN = 48  # documents have 31 to 60 tokens
STREAM = {"batch_size": 5, "seq_len": SEQ_LEN, "samples": "documents", "bucket_batches": 4, "pad_multiple": 8}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


def make(root: Path, **changes: Any) -> Workspace:
    return make_text(root, **{"stream": STREAM, **changes})


def documents(ws: Workspace, split: str) -> dict[str, torch.Tensor]:
    """Each document as a model must see it: with the separators around it, cut."""
    zone, found = ws.zone("shards"), {}
    for path in zone.manifest().select(split)["path"].to_pylist():
        shard = Shard.open(zone.folder / path)
        for name, start, end in zip(shard.ids.to_pylist(), shard.offsets, shard.offsets[1:], strict=False):
            whole = np.append(shard.tokens[start:end], np.uint16(256)).astype(np.int64)
            found[name] = torch.from_numpy(whole[: SEQ_LEN + 1])
    return found


def test_a_steps_loss_and_gradient_are_those_of_its_documents_one_by_one(tmp_path: Path) -> None:
    ws = make(tmp_path, train={"accumulate": 3, "label_smoothing": 0.1})
    known = documents(ws, "train")
    with open_session(ws, Ranks()) as s:
        batch = next(s.data.stream)
        loss, targets = forward_backward(s, batch)
        gradient = {name: p.grad.clone() for name, p in s.learner.model.named_parameters()}
        s.learner.optimizer.zero_grad()
        total, count = torch.zeros(()), 0
        for name in batch.ids():
            logits = s.learner.model(known[name][None, :-1])[0]
            total = total + F.cross_entropy(logits, known[name][1:], reduction="sum", label_smoothing=0.1)
            count += len(known[name]) - 1
        (total / count).backward()
        assert targets == count < batch.size * (batch["tokens"].shape[1] - 1)
        assert float(loss) == pytest.approx(float(total.detach()), rel=1e-5)
        for name, p in s.learner.model.named_parameters():
            torch.testing.assert_close(gradient[name], p.grad, rtol=1e-4, atol=1e-7)


def test_a_training_repeats_is_evaluated_as_it_learnt_and_writes_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws, again = (make(tmp_path / str(n), train={"steps": 14, "eval_every": 14, "accumulate": n}) for n in (1, 4))
    metrics = train(ws)
    assert metrics["epochs"] == pytest.approx((24 + 24 + 4 * 5) / 24, abs=1e-5)
    assert losses(ws)[-1] < losses(ws)[0]
    assert re.search(r"\d\.\d% of the tokens cut off, \d\.\d% padding", capsys.readouterr().out)
    train(again)
    assert losses(again) == pytest.approx(losses(ws), rel=1e-5)
    assert load_config(ws.model).samples == "documents"
    predictor, val = Predictor.load(ws.model), documents(ws, "val")
    assert predictor.encode("ab") == [256, 97, 98]
    with torch.inference_mode():
        nats = sum(F.cross_entropy(predictor.module(d[None, :-1])[0], d[1:], reduction="sum") for d in val.values())
    assert metrics["val_loss"] == pytest.approx(float(nats) / sum(len(d) - 1 for d in val.values()), rel=1e-5)

    test = documents(ws, "test")
    found = evaluate(ws)
    with torch.inference_mode():
        nats = sum(F.cross_entropy(predictor.module(d[None, :-1])[0], d[1:], reduction="sum") for d in test.values())
    size = sum(int((d != 256).sum()) for d in test.values())
    assert (found["samples"], found["bytes"], found["documents"]) == ("documents", size, 4)
    assert found["bits_per_byte"] == pytest.approx(float(nats) / np.log(2) / size, rel=1e-5)
    assert found["cut_bytes"] == sum(
        int((Shard.open(ws.zone("shards").folder / path).tokens != 256).sum())
        for path in ws.zone("shards").manifest().select("test")["path"].to_pylist()
    ) - size > 0  # fmt: skip
    chosen = ws.params.evaluate.model_copy(update={"samples": "sequences"})
    params, zone = ws.params.model_copy(update={"evaluate": chosen}), ws.zone("shards")
    other = evaluate_model(*load_model(ws.model), zone, zone.manifest(), params)
    assert "samples" not in other
    assert other["bytes"] == size + found["cut_bytes"]


def test_a_model_that_keeps_documents_apart_is_given_each_by_itself(tmp_path: Path) -> None:
    ws = make_text(tmp_path, stream={"batch_size": 8, "seq_len": SEQ_LEN})
    zone, test = ws.zone("shards"), documents(ws, "test")
    plain = ModelConfig(ws.params.model.model_dump(), TEXT, SEQ_LEN, "language", "")
    chosen = ws.params.evaluate.model_copy(update={"samples": "documents"})
    params = ws.params.model_copy(update={"evaluate": chosen})
    figures = [
        evaluate_model(config.build(), config, zone, zone.manifest(), params)
        for config in (plain, replace(plain, document_mask=True), replace(plain, samples="documents"))
    ]
    assert figures[0]["bits_per_byte"] == pytest.approx(figures[1]["bits_per_byte"], abs=2e-6)
    assert figures[0] == figures[2]
    assert figures[0]["bytes"] == sum(int((d != 256).sum()) for d in test.values())


def test_windows_leave_no_trace_of_the_choice(tmp_path: Path) -> None:
    ws = make_text(tmp_path, train={"steps": 1})
    train(ws)
    assert "samples" not in json.loads(outs(ws)["data/model/config.json"])
    assert load_config(ws.model).samples == "sequences"


def test_a_loss_of_ones_own_sees_no_padding() -> None:
    task = with_loss(task_of({"vocab_size": 5}, counts_vary=True), Train(steps=1, loss="focal"), {"vocab_size": 5})
    arrays = {"tokens": np.array([[1, 2, 3, 4], [4, 0, 0, 0]], np.uint16), "lengths": np.array([3, 1], np.int32)}
    inputs, targets = task.pair(arrays, torch.device("cpu"))
    assert inputs.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert targets.tolist() == [[2, 3, IGNORED], [IGNORED] * 3]
    logits = torch.randn(2, 3, 5)
    assert task.loss(logits, targets) == task.loss(logits[:1, :2], targets[:1, :2])
    rows = replace(task, criterion=lambda answers, wanted: torch.tensor(1.0 * len(answers) * len(wanted)))
    assert rows.loss(logits, targets) == 2 * 2


def test_replays_and_loaders_count_what_counts(tmp_path: Path) -> None:
    ws = make(tmp_path)
    known = documents(ws, "train")
    with open_session(ws, Ranks()) as s:
        for batch in islice(Loader(s.data.stream, s.goal.task, s.group), 5):
            assert batch["count"] == (batch["targets"] != IGNORED).sum()
            assert batch["weight"] == pytest.approx(1 / batch["count"], rel=1e-12)
        s.data.stream.set_epoch(0)
        samples = dict(replay(ws, 1).samples)
        for name in next(s.data.stream).ids():
            logits = s.learner.model(known[name][None, :-1])[0]
            assert samples[name] == pytest.approx(float(F.cross_entropy(logits, known[name][1:]).detach()), rel=1e-4)
