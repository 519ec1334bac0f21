"""The learning rate's arithmetic, weight decay's groups, clipping, and the optimiser's saved state."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from torch import nn

from pipelines.params import Train
from pipelines.training.optimizers import (
    build_optimizer,
    clip,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from pipelines.training.schedules import learning_rate


def test_warm_up_peak_and_cosine() -> None:
    train = Train(lr=1.0, warmup=0.1, min_lr=0.2, steps=100)
    rates = [learning_rate(step, 100, train) for step in range(100)]
    assert rates[:10] == [pytest.approx(k / 10) for k in range(1, 11)]
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.2)
    middle = 10 + 89 // 2
    assert rates[middle] == pytest.approx(0.2 + 0.8 * (1 + cos(pi * (middle - 10) / 89)) / 2)
    assert all(after <= before for before, after in pairwise(rates[10:]))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_trainings_have_a_positive_rate(steps: int) -> None:
    train = Train(lr=0.5, warmup=0.9, min_lr=0.0, steps=steps)
    rates = [learning_rate(step, steps, train) for step in range(steps)]
    assert 0.5 in rates
    assert all(0 <= rate <= 0.5 for rate in rates)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model, Train(steps=1, lr=0.1, weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["0.weight"], before["0.weight"] * (1 - 0.1 * 0.5))
    assert all(torch.equal(after[name], before[name]) for name in ("0.bias", "1.weight", "1.bias"))


def test_clipping_returns_the_norm_before_and_none_leaves_gradients_alone() -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip(weights, None)) == 5.0
    assert weights[1].grad.tolist() == [4.0]
    assert float(clip(weights, 1.0)) == 5.0
    assert weights[1].grad.tolist() == [pytest.approx(0.8, rel=1e-5)]
    assert float(clip(weights, 10.0)) == pytest.approx(1.0, rel=1e-5)


def test_the_optimisers_state_comes_back_bit_for_bit() -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    settings = Train(steps=1)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, settings)
    train(model, optimizer, range(3))
    copy = nn.Linear(3, 2)
    copy.load_state_dict(model.state_dict())
    resumed = build_optimizer(copy, settings)
    load_optimizer_tensors(copy, resumed, {k: v.clone() for k, v in optimizer_tensors(model, optimizer).items()})
    train(model, optimizer, range(3, 6))
    train(copy, resumed, range(3, 6))
    assert torch.equal(model.weight, copy.weight)
