"""A step's batch once more: exact, with what is bad about it named."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_samples import make_points, make_text, with_train, without_mlflow

from pipelines.profiling.replay import replay, show_replay
from pipelines.training import train
from pipelines.workspace import Workspace
from storage.errors import Interrupted, ParamsError

#: Its second layer breaks for samples whose first feature is larger than LIMIT.
BREAKING = """
import os, signal
import torch
from torch import nn

class Break(nn.Module):
    def forward(self, x):
        return torch.where(x[:, :1] > 3.0, x / 0.0, x)

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.layers = nn.Sequential(nn.Identity(), Break(), nn.Linear(in_features, num_classes))

    def forward(self, x):
        return self.layers(x)
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


def batches_of(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float]]:
    """Train; what each step's batch was and what its loss came to."""
    from pipelines.training import loop

    seen, real = [], loop.forward_backward

    def noting(s: Any, batch: Any) -> Any:
        loss, targets = real(s, batch)
        seen.append((list(batch.ids()), float(loss) / targets))
        return loss, targets

    with monkeypatch.context() as patch:  # undone at once; the fixture's patches stay, and are undone at the end
        patch.setattr(loop, "forward_backward", noting)
        train(ws)
    return seen


@pytest.mark.parametrize("make", [make_points, make_text])
def test_the_first_step_comes_back_to_the_bit_and_every_batch_to_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    ws = make(tmp_path)
    seen = batches_of(ws, monkeypatch)
    found = replay(ws, 1)
    assert found.weights_of == 0
    assert found.loss == seen[0][1]
    assert sum(loss for _, loss in found.samples) / len(found.samples) == pytest.approx(found.loss, rel=1e-5)
    assert found.forward is None
    assert found.gradient_norm < inf
    for step in (2, 6, 12):  # 70 samples in batches of 16: the last ones are of later epochs
        assert sorted(name for name, _ in replay(ws, step).samples) == sorted(seen[step - 1][0])


def test_the_weights_are_those_of_the_nearest_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.training import loop

    ws = make_points(tmp_path, train={"checkpoint_every": 3})
    real, losses = loop.forward_backward, []

    def stopping(s: Any, batch: Any) -> Any:
        if s.state.step == 8:
            raise Interrupted("enough", 15)
        loss, targets = real(s, batch)
        losses.append(float(loss) / targets)
        return loss, targets

    monkeypatch.setattr(loop, "forward_backward", stopping)
    with pytest.raises(Interrupted):
        train(ws)
    found = replay(ws, 7)  # of the checkpoint after step 6: exactly what step 7 saw
    assert found.weights_of == 6
    assert found.loss == losses[6]
    assert replay(ws, 6).weights_of == 3
    assert replay(with_train(ws, ranks=2), 8).weights_of == 6


def test_what_is_not_finite_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = make_points(tmp_path, model={"name": "breaking:Model"})
    (tmp_path / "breaking.py").write_text(BREAKING)
    found = replay(ws, 1)
    assert 0 < len(found.not_finite) < 16
    assert [name for name, _ in found.samples[: len(found.not_finite)]] == found.not_finite
    assert found.forward is not None
    assert (found.forward.module, found.forward.kind) == ("layers.1", "Break")
    assert found.gradients == ["layers.2.weight", "layers.2.bias"]
    show_replay(ws, 1)
    said = capsys.readouterr().out
    for part in ("loss nan", found.not_finite[0], "first appear in layers.1 (Break)", "layers.2.weight"):
        assert part in said
    show_replay(ws, 1, as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is no JSON
    assert told["not_finite"] == found.not_finite
    assert told["loss"] is None


def test_a_step_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    ws = make_points(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ParamsError, match="the steps 1 to 12"):
        replay(ws, 13)
    replay(ws, 12)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert torch.is_grad_enabled()
