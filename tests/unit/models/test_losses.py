"""train.loss: by name and import path; what is no sum over the targets is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipelines.models import task_of, with_loss
from pipelines.params import Train
from storage.errors import ParamsError

CLASSES = {"target": {"name": "label", "dtype": "int64"}, "classes": ["a", "b", "c"]}
NUMBER = {"target": {"name": "label", "dtype": "float32", "std": 10.0}}
TEXT = {"vocab_size": 7}

OWN = """
from torch.nn import functional as F

def hinge(answers, targets, margin=1.0):
    return F.multi_margin_loss(answers, targets, margin=margin, reduction="sum")

def mean(answers, targets):
    return F.cross_entropy(answers, targets)

def each(answers, targets):
    return F.cross_entropy(answers, targets, reduction="none")

def broken(answers, targets):
    return answers.no_such_thing()

number = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_losses.py").write_text(OWN)


def task(spec: dict[str, Any], **train: Any) -> Any:
    return with_loss(task_of(spec), Train(steps=1, **train), spec)


def test_by_default_classes_and_tokens_cost_nats_and_numbers_squared_deviations() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    for name in ("auto", "cross_entropy"):
        assert torch.equal(
            task(CLASSES, loss=name).loss(logits, labels), F.cross_entropy(logits, labels, reduction="sum")
        )
    logits, tokens = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    wanted = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
    assert torch.equal(task(TEXT).loss(logits, tokens), wanted)
    assert float(task(NUMBER).loss(torch.tensor([10.0, 0.0]), torch.tensor([20.0, 20.0]))) == 1 + 4


def test_named_losses() -> None:
    answers, targets = torch.tensor([0.0, 50.0]), torch.tensor([5.0, 20.0])  # 0.5 and 3 deviations
    assert float(task(NUMBER, loss="absolute").loss(answers, targets)) == pytest.approx(3.5)
    assert float(task(NUMBER, loss="huber").loss(answers, targets)) == pytest.approx(0.125 + 2.5)
    assert float(task(NUMBER, loss="huber", loss_args={"delta": 2.0}).loss(answers, targets)) == pytest.approx(
        0.125 + 4
    )
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(task(CLASSES, loss="focal", loss_args={"gamma": 0.0}).loss(logits, labels), plain.sum())
    assert torch.allclose(
        task(CLASSES, loss="focal").loss(logits, labels), ((1 - torch.exp(-plain)) ** 2 * plain).sum()
    )


def test_a_loss_of_ones_own_sees_tokens_one_by_one() -> None:
    own = task(TEXT, loss="own_losses:hinge", loss_args={"margin": 0.5})
    logits, tokens = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    wanted = F.multi_margin_loss(logits.flatten(0, 1), tokens.flatten(), margin=0.5, reduction="sum")
    assert torch.equal(own.loss(logits, tokens), wanted)
    assert own.summary(2.0, 0.0) == {"loss": 2.0}, "e to the power of a hinge loss is no perplexity"
    assert task(CLASSES, loss="own_losses:hinge").summary(2.0, 0.5) == {"loss": 2.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("spec", "train", "said"),
    [
        (CLASSES, {"loss": "huber"}, "is not for classification: that has cross_entropy, focal"),
        (NUMBER, {"loss": "cross_entropy"}, "is not for regression"),
        (CLASSES, {"loss": "own_losses:hinges"}, "Did you mean 'hinge'?"),
        (CLASSES, {"loss": "own_loses:hinge"}, "does not import"),
        (CLASSES, {"loss": "own_losses:number"}, "is no function"),
        (CLASSES, {"loss": "own_losses:mean"}, "Return the sum instead of the mean"),
        (CLASSES, {"loss": "own_losses:each"}, "returned a tensor of shape [4]"),
        (CLASSES, {"loss": "own_losses:broken"}, "no_such_thing"),
        (NUMBER, {"loss": "own_losses:hinge"}, "cannot be called"),
        (CLASSES, {"loss": "own_losses:hinge", "loss_args": {"margn": 1}}, "Did you mean 'margin'?"),
        (CLASSES, {"loss": "focal", "label_smoothing": 0.1}, "train.label_smoothing=0.1 goes with"),
    ],
)
def test_what_cannot_be_a_loss_is_explained(spec: dict[str, Any], train: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        task(spec, **train)
    assert said in str(caught.value)
