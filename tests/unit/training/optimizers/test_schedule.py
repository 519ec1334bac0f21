"""The learning rate's arithmetic, weight decay's groups, and clipping."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from torch import nn

from pipelines.params import Train
from pipelines.training.optimizers import build_optimizer, set_learning_rate
from pipelines.training.optimizers.schedules import learning_rate
from pipelines.training.parallelism import Group, Layout, clip_
from pipelines.training.process.process_group import Ranks


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


def clip(weights: list[nn.Parameter], limit: float | None, value: float | None = None) -> torch.Tensor:
    return clip_(weights, limit, Group(ranks=Ranks(), layout=Layout(), device=torch.device("cpu")), value=value)


def test_clipping_returns_the_norm_before_and_none_leaves_gradients_alone() -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip(weights, None)) == 5.0
    assert weights[1].grad.tolist() == [4.0]
    assert float(clip(weights, 1.0)) == 5.0
    assert weights[1].grad.tolist() == [pytest.approx(0.8, rel=1e-5)]
    assert float(clip(weights, 10.0)) == pytest.approx(1.0, rel=1e-5)


def rates(schedule: object, steps: int = 100, **changes: object) -> list[float]:
    train = Train(**{"lr": 1.0, "warmup": 0.1, "min_lr": 0.2, "steps": steps, "schedule": schedule} | changes)
    return [learning_rate(step, steps, train) for step in range(steps)]


def test_each_schedule_at_points_computed_by_hand() -> None:
    warm = [pytest.approx(k / 10) for k in range(1, 11)]
    for name in ("constant", "linear", "cosine", "wsd", "inverse_sqrt", "step"):
        assert rates(name)[:10] == warm, name
    assert rates("constant")[10:] == [1.0] * 90
    linear = rates("linear")
    assert linear[10] == 1.0
    assert linear[99] == pytest.approx(0.2)
    assert linear[54] - linear[55] == pytest.approx(0.8 / 89)
    stable = rates({"name": "wsd", "decay": 0.3})
    assert stable[10:70] == [1.0] * 60
    assert stable[70] == pytest.approx(1 - 0.8 / 30)
    assert stable[99] == pytest.approx(0.2)
    assert rates({"name": "wsd", "decay": 0.3, "shape": "sqrt"})[70] == pytest.approx(1 - 0.8 * (1 / 30) ** 0.5)
    root = rates("inverse_sqrt")
    assert root[39] == pytest.approx((10 / 40) ** 0.5)
    assert rates("inverse_sqrt", min_lr=0.6)[99] == 0.6
    falls = rates({"name": "step", "at": [0.5, 0.8], "factor": 0.1}, warmup=0.0)
    assert falls[49] == 1.0
    assert (falls[50], falls[79]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert falls[80] == pytest.approx(0.01)
    cycle = rates({"name": "one_cycle", "rise": 0.25, "start": 0.1, "end": 0.01}, steps=101)
    assert cycle[0] == pytest.approx(0.1)
    assert cycle[25] == 1.0
    assert max(cycle) == 1.0
    assert cycle[100] == pytest.approx(0.01)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "inverse_sqrt", "step", "one_cycle"])
def test_no_schedule_is_above_its_peak_or_negative(name: str, steps: int) -> None:
    for warmup in (0.0, 0.5, 0.99):
        assert all(0 <= rate <= 1 for rate in rates(name, steps=steps, warmup=warmup))


def test_clipping_by_value_comes_before_the_norm() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3.0, -4.0, 0.5])
    assert float(clip([weight], None, 1.0)) == pytest.approx((9 + 16 + 0.25) ** 0.5)
    assert weight.grad.tolist() == [1.0, -1.0, 0.5]
    clip([weight], 0.75, 1.0)
    assert weight.grad.tolist() == [pytest.approx(v, rel=1e-5) for v in (0.5, -0.5, 0.25)]
