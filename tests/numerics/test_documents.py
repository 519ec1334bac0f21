"""Documents that share a sequence are trained as if each stood alone (`stream.document_mask`). Over ranks:
test_layouts.

Stated tolerances, float32: logits 1e-5 absolute, gradients 1e-5 relative to the largest one.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.models import task_of
from pipelines.models.architectures.transformer import Transformer
from pipelines.streaming.gather.document_ids import documents_of

CPU = torch.device("cpu")
VOCABULARY, LENGTHS = 31, [5, 1, 9, 3, 6]
NO_SEPARATOR = {"vocab_size": VOCABULARY}


def packed(lengths: list[int] = LENGTHS) -> dict[str, np.ndarray[Any, Any]]:
    """One sequence that holds documents of these lengths but for the last one's last token, as a batch."""
    offsets = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(3).integers(1, VOCABULARY, (1, offsets[-1])).astype(np.uint16)
    documents, positions = documents_of(offsets, np.zeros(1, np.int64), int(offsets[-1]))
    return {"tokens": tokens, "documents": documents, "positions": positions}


def alone(batch: dict[str, np.ndarray[Any, Any]]) -> list[Tensor]:
    """Its documents, [1, length] each."""
    tokens = torch.from_numpy(batch["tokens"]).long()
    return [tokens[:, torch.from_numpy(batch["documents"][0] == i)] for i in range(len(LENGTHS))]


def make(**options: Any) -> Transformer:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "seq_len": 24, "dim": 16, "layers": 2, "heads": 2}
    model = Transformer(**sizes | options)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(weight, std=0.2)  # so large that what a token sees matters
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_logits_and_gradients_are_those_of_each_document_alone() -> None:
    model, batch = make(), packed()
    task = task_of(NO_SEPARATOR, document_mask=True).for_model(model)
    inputs, targets = task.pair(batch, CPU)
    logits = model(inputs, **task.beside(batch, CPU))
    apart = [model(document) for document in alone(batch)]
    torch.testing.assert_close(logits, torch.cat(apart, 1)[:, :-1], rtol=0, atol=1e-5)

    plain = task_of(NO_SEPARATOR)
    each = [plain.loss(answers[:, :-1], document[:, 1:]) for answers, document in zip(apart, alone(batch), strict=True)]
    wanted = gradients(model, torch.stack(each).sum())
    found = gradients(model, task.loss(model(inputs, **task.beside(batch, CPU)), targets))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * largest)
    assert task.counted(batch) == sum(LENGTHS) - len(LENGTHS)


@torch.no_grad()
def test_without_the_mask_or_with_other_positions_they_are_not() -> None:
    model, batch = make(), packed()
    task = task_of(NO_SEPARATOR, document_mask=True)
    inputs, _ = task.pair(batch, CPU)
    beside = task.beside(batch, CPU)
    wanted = torch.cat([model(document) for document in alone(batch)], 1)[:, :-1]
    for breach in ({"documents": torch.zeros_like(beside["documents"])}, {"positions": 2 * beside["positions"]}):
        assert float((model(inputs, **beside | breach) - wanted).abs().max()) > 0.1


def test_positions_begin_at_the_window_where_the_document_began_before_it() -> None:
    documents, positions = documents_of(np.array([0, 30, 33, 40]), np.array([26]), 9)
    batch = {"tokens": np.ones((1, 9), np.uint16), "documents": documents, "positions": positions}
    beside = task_of(NO_SEPARATOR, document_mask=True).beside(batch, CPU)
    assert positions[0, :4].tolist() == [26, 27, 28, 29]
    assert beside["documents"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 2]]
    assert beside["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]


def test_a_document_learns_its_end_but_no_other_beginning() -> None:
    tokens = np.array([[9, 4, 5, 9, 6, 7, 3]], np.uint16)
    documents, positions = documents_of(np.array([0, 3, 5, 7]), np.zeros(1, np.int64), 7)
    batch = {"tokens": tokens, "documents": documents, "positions": positions}
    _, targets = task_of({"vocab_size": 10, "separator": 9}, document_mask=True).pair(batch, CPU)
    assert targets.tolist() == [[4, 5, 9, 6, -100, 3]]


def test_a_loss_of_ones_own_sees_the_targets_that_count() -> None:
    seen: list[Tensor] = []

    def loss(answers: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return answers[:, 0].sum()

    batch = packed()
    task = replace(task_of(NO_SEPARATOR, document_mask=True), criterion=loss)
    inputs, targets = task.pair(batch, CPU)
    task.loss(torch.zeros(*inputs.shape, VOCABULARY), targets)
    assert seen[0].tolist() == targets[targets >= 0].tolist()
    assert len(seen[0]) == task.counted(batch)
