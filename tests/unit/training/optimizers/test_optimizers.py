"""Each optimiser by name: it learns, it resumes exactly, its parameters reach it; the two that are our own find the
minima that SciPy finds."""

import json
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.params import Train
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.state import load_optimizer, optimizer_state
from pipelines.training.optimizers import LineSearchOptimizer, build_optimizer, set_learning_rate
from pipelines.training.optimizers.line_search import strong_wolfe
from storage.errors import ParamsError

#: With more than their defaults where that adds state.
SETTINGS: list[dict[str, Any]] = [
    {"name": "sgd", "nesterov": True},
    {"name": "adam", "amsgrad": True},
    {"name": "adamw"},
    {"name": "nadam"},
    {"name": "rmsprop", "momentum": 0.5, "centered": True},
    {"name": "adagrad"},
    {"name": "adadelta"},
    {"name": "muon"},
    {"name": "lbfgs", "history": 3},
    {"name": "cg", "carry": True},
    {"name": "cg", "carry": True, "formula": "hager_zhang"},
]
NAMES = ["-".join(str(value) for value in settings.values() if isinstance(value, str)) for settings in SETTINGS]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Steps on batches that are functions of the step; the last loss before its step."""
    loss = 0.0
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(16, 1, 6)
        y = x.mean((1, 2)) > 0

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(model(x), y.long())
            value.backward()
            return float(value.detach())

        if isinstance(optimizer, LineSearchOptimizer):
            loss = optimizer.step(closure)
        else:
            loss = closure()
            optimizer.step()
    return loss


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_resumed_is_as_never_stopped(settings: dict[str, Any]) -> None:
    params = Train(steps=1, lr=0.05, optimizer=settings, weight_decay=0.01)
    model = network()
    optimizer = build_optimizer(model, params)
    first = train(model, optimizer, range(1))
    train(model, optimizer, range(1, 4))
    copy = network()
    copy.load_state_dict(model.state_dict())
    resumed = build_optimizer(copy, params)
    train(copy, resumed, range(2))  # what it knows by itself is not what counts
    copy.load_state_dict(model.state_dict())
    tensors, values = optimizer_state(model, optimizer)
    chunks = {name: Chunk.of(tensor.clone()) for name, tensor in tensors.items()}
    load_optimizer(copy, resumed, chunks, json.loads(json.dumps(values)))
    last = train(model, optimizer, range(4, 12))
    train(copy, resumed, range(4, 12))
    for name, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name
    assert last < first or settings.get("carry"), "what is carried is of another batch here"


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_state_is_tensors_of_their_parameters_shape_or_scalars(settings: dict[str, Any]) -> None:
    model = network()
    optimizer = build_optimizer(model, Train(steps=1, optimizer=settings))
    train(model, optimizer, range(2))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    tensors, _ = optimizer_state(model, optimizer)
    assert len(tensors) == sum(len(slots) for slots in optimizer.state.values()), "all of it is tensors"
    for key, tensor in tensors.items():
        assert tensor.ndim == 0 or tensor.shape == shapes[key.split("/")[1]], key


def test_the_standard_state_dict_comes_back_too() -> None:
    params = Train(steps=1, lr=0.05, optimizer="muon")
    model, copy = network(), network()
    optimizer, resumed = build_optimizer(model, params), build_optimizer(copy, params)
    train(model, optimizer, range(3))
    copy.load_state_dict(model.state_dict())
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    train(copy, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = network()
    optimizer = build_optimizer(model, Train(steps=1, optimizer={"name": "muon", "rest_lr": 0.5}, weight_decay=0.2))
    train(model, optimizer, range(1))
    slots = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert [name for name, has in slots.items() if has == {"momentum_buffer"}] == ["0.weight", "2.weight"]
    assert all(has in ({"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}) for has in slots.values())
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.05]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.2, 0.0]


def test_muon_is_torchs_on_matrices_and_flattens_convolutions() -> None:
    model = network()
    flat = nn.Parameter(model[0].weight.detach().clone().flatten(1))
    theirs = torch.optim.Muon([flat], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = build_optimizer(model, Train(steps=1, lr=0.1, optimizer="muon", weight_decay=0.1))
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.sin(parameter.detach() * 7)
        flat.grad = torch.sin(flat.detach() * 7)
        optimizer.step()
        theirs.step()
    assert torch.equal(model[0].weight.flatten(1), flat)


def test_muon_of_tied_embeddings_has_all_blocks_and_none_without_hidden_matrices() -> None:
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    optimizer = build_optimizer(tied, Train(steps=1, optimizer="muon"))
    assert optimizer.param_groups[0]["params"] == [tied[1].weight]
    with pytest.raises(ParamsError, match="no hidden matrix"):
        build_optimizer(nn.Linear(3, 2), Train(steps=1, optimizer="muon"))


def test_parameters_reach_torch() -> None:
    model = network()

    def group(optimizer: Any, **changes: Any) -> dict[str, Any]:
        return build_optimizer(model, Train(steps=1, optimizer=optimizer, **changes)).param_groups[0]

    assert group("adamw")["betas"] == (0.9, 0.95)
    assert group("adamw", betas=[0.8, 0.9])["betas"] == (0.8, 0.9)
    assert group({"name": "adam", "betas": [0.5, 0.6]})["betas"] == (0.5, 0.6)
    assert group("nadam")["decoupled_weight_decay"]
    assert group({"name": "sgd", "momentum": 0.7})["momentum"] == 0.7
    assert group({"name": "rmsprop", "alpha": 0.5})["alpha"] == 0.5
    assert group({"name": "adadelta", "rho": 0.5})["rho"] == 0.5
    assert group({"name": "adagrad", "lr_decay": 0.5})["lr_decay"] == 0.5
    assert all(group(name)["fused"] for name in ("sgd", "adam", "adamw", "adagrad"))


class Function(nn.Module):
    """x ∈ R^n from a hard start, float64."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.start = start
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))


class Rosenbrock(Function):
    def forward(self) -> Tensor:
        x = self.x
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


class Quadratic(Function):
    """x·A·x/2 - b·x with a condition number of about 30."""

    def forward(self) -> Tensor:
        n = len(self.start)
        scale = torch.linspace(1, 30, n, dtype=torch.float64)
        mix = torch.eye(n, dtype=torch.float64) + 0.1
        return (mix @ self.x * scale) @ (mix @ self.x) / 2 - self.x.sum()


def minimise(model: Function, settings: dict[str, Any], tolerance: float) -> tuple[float, int]:
    """(value, evaluations) at a gradient below `tolerance`."""
    optimizer = build_optimizer(model, Train(steps=1, lr=1.0, weight_decay=0.0, optimizer=settings))
    assert isinstance(optimizer, LineSearchOptimizer)

    def closure() -> float:
        optimizer.zero_grad()
        value = model()
        value.backward()
        return float(value.detach())

    for _ in range(200):
        value = optimizer.step(closure)
        if optimizer.gradient_norm < tolerance:
            return value, optimizer.evaluations
    raise AssertionError(f"gradient still {optimizer.gradient_norm}")


def by_scipy(model: Function, method: str, tolerance: float) -> tuple[float, int]:
    def both(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        with torch.no_grad():
            model.x.copy_(torch.from_numpy(x))
        model.zero_grad()
        value = model()
        value.backward()
        return float(value.detach()), model.x.grad.numpy().copy()

    options = {"gtol": tolerance, "maxiter": 2000} | ({"ftol": 0.0} if method == "L-BFGS-B" else {})
    found = scipy.optimize.minimize(both, np.array(model.start), jac=True, method=method, options=options)
    return found.fun, found.nfev


PROBLEMS = [Rosenbrock([-1.2, 1.0]), Rosenbrock([-1.2, 1.0] * 5), Quadratic([3.0, -2.0] * 15)]


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"name": "cg", "carry": True}, "CG"),
        ({"name": "cg", "carry": True, "formula": "hager_zhang"}, "CG"),
        ({"name": "lbfgs"}, "L-BFGS-B"),
    ],
    ids=["polak_ribiere", "hager_zhang", "lbfgs"],
)
def test_as_good_as_scipy(settings: dict[str, Any], method: str) -> None:
    """To 1e-10 in the value, at gradients of 1e-6, in at most 1.6 times the evaluations: over several starts, since how
    many one takes depends on the last bit of the processor's arithmetic."""
    rng, ours, theirs = np.random.default_rng(0), 0, 0
    for problem in PROBLEMS:
        for spread in (0.0, 0.1, 0.1, 0.1):
            start = list(problem.start + spread * rng.standard_normal(len(problem.start)))
            expected, evaluations = by_scipy(type(problem)(start), method, 1e-6)
            value, own = minimise(type(problem)(start), settings, 1e-6)
            assert value == pytest.approx(expected, abs=1e-10)
            ours, theirs = ours + own, theirs + evaluations
    assert ours <= 1.6 * theirs, f"{ours} against {theirs}"


@pytest.mark.parametrize("settings", [{"name": "cg", "carry": True, "c2": 0.01}, {"name": "lbfgs", "c2": 0.01}])
def test_a_quadratic_takes_about_as_many_directions_as_it_has_dimensions(settings: dict[str, Any]) -> None:
    model = Quadratic([3.0, -2.0] * 3)
    optimizer = build_optimizer(
        model, Train(steps=1, lr=1.0, weight_decay=0.0, optimizer={**settings, "iterations": 8, "evaluations": 40})
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = model()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)  # 8 directions for 6 dimensions
    closure()
    assert float(model.x.grad.norm()) < 1e-4


def test_steps_meet_the_strong_wolfe_conditions() -> None:
    functions: list[Any] = [
        (lambda t: t**4 - 3 * t**3 + 2, lambda t: 4 * t**3 - 9 * t**2),
        (lambda t: (t - 5) ** 2, lambda t: 2 * (t - 5)),
        (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),  # Moré & Thuente 1994
        (lambda t: float("inf") if t > 3 else (t - 1) ** 2, lambda t: 2 * (t - 1)),  # a cliff
    ]
    starts = [1.0, 0.0, 0.0, 0.0]
    for (f, g), origin in zip(functions, starts, strict=True):
        for first, c2 in product((1e-3, 0.1, 1.0, 10.0, 1000.0), (0.1, 0.9)):

            def at(step: float, f: Any = f, g: Any = g, origin: float = origin) -> tuple[float, float]:
                return f(origin + step), g(origin + step)

            value, slope = at(0.0)
            point = strong_wolfe(at, value, slope, first, c1=1e-4, c2=c2, evaluations=60)
            assert point is not None
            assert point.value <= value + 1e-4 * point.step * slope
            assert abs(point.slope) <= -c2 * slope


def test_without_a_lower_point_the_weights_stay() -> None:
    model = Rosenbrock([-1.2, 1.0])
    for settings in ({"name": "cg"}, {"name": "lbfgs"}):
        optimizer = build_optimizer(model, Train(steps=1, lr=1.0, weight_decay=0.0, optimizer=settings))
        before, calls = model.x.detach().clone(), []

        def closure(optimizer: torch.optim.Optimizer = optimizer, calls: list[float] = calls) -> float:
            optimizer.zero_grad()
            model().backward()
            calls.append(float(len(calls)))
            return calls[-1]  # worse each time, whatever the gradient promises

        assert optimizer.step(closure) == 0.0
        assert torch.equal(model.x, before)


def test_weight_decay_is_part_of_what_is_searched() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = build_optimizer(model, Train(steps=1, lr=1.0, weight_decay=3.0, optimizer="lbfgs"))

    def closure() -> float:
        optimizer.zero_grad()
        value = (model.weight - 4).square().sum() / 2
        value.backward()
        return float(value.detach())

    for _ in range(3):
        optimizer.step(closure)
    assert model.weight.item() == pytest.approx(1.0, abs=1e-8)  # of (w - 4)²/2 + 3w²/2
