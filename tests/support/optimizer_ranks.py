"""One of two ranks that try the optimisers: `python optimizer_ranks.py ROOT`, with torchrun's variables set."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.training_samples import make_points, without_mlflow
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pipelines.params import Train
from pipelines.training.optimizers import LineSearchOptimizer, build_optimizer
from pipelines.training.process.process_group import Ranks
from pipelines.training.worker import train_rank
from storage.errors import DataError

#: The second rank's answers are nan in its second and third training step.
HALF_BROKEN = """
import os
from torch import nn

class Model(nn.Module):
    def __init__(self, *, in_features, num_classes, mean, std):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        broken = self.training and os.environ["RANK"] == "1" and self.calls in (2, 3)
        return self.head(x) * (float("nan") if broken else 1.0)
"""
STEPS = 4


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def descend(model: nn.Module, parallel: nn.Module, settings: dict[str, Any], ranks: Ranks) -> list[float]:
    """The losses of some steps on a batch of 16 that the ranks share out."""
    optimizer = build_optimizer(model, Train(steps=1, lr=0.1, weight_decay=0.05, optimizer=settings))
    seen = []
    for step in range(STEPS):
        torch.manual_seed(step)
        x = torch.randn(16, 6, dtype=torch.float64)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        mine = slice(ranks.rank * 16 // ranks.world, (ranks.rank + 1) * 16 // ranks.world)

        def closure(x: Tensor = x[mine], y: Tensor = y[mine]) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(parallel(x), y, reduction="sum")
            (loss * ranks.world / 16).backward()
            return ranks.sum(loss.detach(), device=torch.device("cpu"))[0] / 16

        if isinstance(optimizer, LineSearchOptimizer):
            seen.append(optimizer.step(closure))
        else:
            seen.append(closure())
            optimizer.step()
    return seen


def same_on_ranks(ranks: Ranks) -> None:
    """Replicated and sharded weights go where those of one rank go."""
    mesh = init_device_mesh("cpu", (2,))
    for settings in ({"name": "lbfgs"}, {"name": "cg", "carry": True}, {"name": "muon"}, {"name": "nadam"}):
        alone = network()
        expected = descend(alone, alone, settings, Ranks())
        replicated = network()
        found = descend(replicated, DistributedDataParallel(replicated), settings, ranks)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        sharded = network()
        fully_shard(sharded, mesh=mesh)
        found = descend(sharded, sharded, settings, ranks)
        # Muon's iteration is in bfloat16, where the order of sums shows.
        torch.testing.assert_close(found, expected, rtol=2e-2 if settings["name"] == "muon" else 1e-6, atol=1e-9)
        everywhere = ranks.gather(found)
        assert everywhere[0] == everywhere[1], "the ranks decided differently"


def main(root: Path) -> None:
    without_mlflow()
    ranks = Ranks.from_environment()
    os.chdir(root)
    own = root / str(ranks.rank)
    own.mkdir(exist_ok=True)  # the state of one training; rank 0 writes it
    settings: dict[str, Any] = {"nonfinite": "skip", "steps": 6, "log_every": 1}
    # PowerSGD adds what a step lost to the next one, from the third step on; after the broken third one it must not.
    network = {"communication": {"compression": "powersgd", "powersgd_after": 2}}
    ws = make_points(own, model={"name": "half_broken:Model"}, train=settings | network)
    first, second, third = os.environ["PORTS"].split()
    os.environ["MASTER_PORT"] = first
    train_rank(ws, ranks)
    os.environ["MASTER_PORT"] = second
    ws = make_points(own / "stop", model={"name": "half_broken:Model"}, train=settings | {"nonfinite": "stop"})
    try:
        train_rank(ws, ranks)
    except DataError as error:
        print(f"rank {ranks.rank}: {error}")
    os.environ["MASTER_PORT"] = third
    dist.init_process_group("gloo")
    same_on_ranks(ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    (Path(sys.argv[1]) / "half_broken.py").write_text(HALF_BROKEN)
    main(Path(sys.argv[1]))
