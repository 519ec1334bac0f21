"""For tests of checkpoints of one rank: a small model in training, and its checkpoints in a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.manifest import FILENAME
from pipelines.training.process.process_group import Ranks
from storage.lake import Zone


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))

        def closure(x: Tensor = x) -> float:
            optimizer.zero_grad()
            loss = (model(x) - x[:, :3]).square().mean()
            torch.autograd.backward(loss)
            return float(loss.detach())

        closure()
        optimizer.step(closure)


Make = Callable[[nn.Module], torch.optim.Optimizer]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


class Case:
    """A model in training, and its checkpoints in `folder`."""

    def __init__(self, folder: Path, rules: Rules | None = None, make: Make = adam, seed: int = 0) -> None:
        self.folder, self.model = folder, a_model(seed)
        self.optimizer = make(self.model)
        self.saver = Saver(Zone(folder), rules or Rules(), Ranks(), None, self.model, self.optimizer)

    def save(self, step: int, score: float | None = None, *, wait: bool = True) -> None:
        self.saver.save(step, Extra({}, {"train": {"step": step}}, score), wait=wait)

    def restored(self) -> int | None:
        found = self.saver.restore()
        return None if found is None else found.values["train"]["step"]

    def steps(self) -> list[int]:
        return sorted(int(path.parent.name.removeprefix("step-")) for path in self.folder.glob(f"step-*/{FILENAME}"))

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files_of(case: Case, step: int) -> list[Path]:
    manifest = json.loads((case.folder / f"step-{step:08d}" / FILENAME).read_text())
    return [case.folder / path for path in manifest["files"]]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_last(file: Path) -> None:
    """In a tensor's values: the middle of a small file lies in its header."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])
