"""Four ranks, in which every parallel layout saves a checkpoint, and then every layout loads each of them.

python tests/support/checkpoint_ranks.py FOLDER      the first rank of a layout writes FOLDER/found-<layout>.json
"""

import json
import multiprocessing
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipelines.models.architectures.transformer import Transformer
from pipelines.params import Checkpoints as Rules
from pipelines.params import Parallel, Train
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.state import model_tensors, optimizer_state
from pipelines.training.parallelism import DIMENSIONS, Layout, parallelize
from pipelines.training.process.device import Precision
from pipelines.training.process.process_group import Ranks
from storage.lake import Zone

WORLD = 4
#: Layout → pipeline × data × shard × tensor, and its ranks. Some share ranks, so that layouts work side by side.
LAYOUTS: dict[str, tuple[tuple[int, int, int, int], list[int]]] = {
    "one": ((1, 1, 1, 1), [0]),
    "ddp 2": ((1, 2, 1, 1), [0, 1]),
    "fsdp 2": ((1, 1, 2, 1), [2, 3]),
    "tensor 2": ((1, 1, 1, 2), [1, 2]),
    "pipeline 2": ((2, 1, 1, 1), [0, 3]),
    "fsdp 2 × tensor 2": ((1, 1, 2, 2), [0, 1, 2, 3]),
}
SIZES = {"vocab_size": 33, "seq_len": 8, "dim": 12, "layers": 3, "heads": 2, "hidden": 20}
TOKENS = torch.arange(32).reshape(4, 8) % SIZES["vocab_size"]


@dataclass(frozen=True)
class SomeRanks(Ranks):
    """Ranks of a part of the world."""

    group: Any = None

    def share(self, value: Any) -> Any:
        box = [value]
        if self.group is not None:
            dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [value] * self.world
        if self.group is not None:
            dist.all_gather_object(values, value, self.group)
        return values


@dataclass(frozen=True)
class Place:
    """This process in a layout."""

    ranks: SomeRanks
    layout: Layout
    mesh: DeviceMesh | None


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(**SIZES)  # type: ignore[arg-type]


class Case:
    """A model in a layout, on the ranks that it has."""

    def __init__(self, place: Place, folder: Path, seed: int) -> None:
        pipeline, data, shard, tensor = place.layout.sizes
        parallel = Parallel(pipeline=pipeline, data=data, shard=shard, tensor=tensor)
        train, device = Train(steps=1, ranks=place.ranks.world, parallel=parallel), torch.device("cpu")
        parallelized = parallelize(
            plain(seed),
            place.layout,
            place.mesh,
            train,
            device,
            Precision("cpu", torch.float32),
        )
        self.model, self.runner = parallelized.model, parallelized.runner
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.saver = Saver(Zone(folder), Rules(), place.ranks, place.ranks.group, self.model, self.optimizer)

    def step(self) -> None:
        """A step whose gradient is a function of each weight, so that it is the same in every layout."""
        for parameter in self.model.parameters():
            parameter.grad = parameter.detach() * 0.5 + 0.25
        self.optimizer.step()

    def whole(self) -> dict[str, Tensor]:
        tensors = model_tensors(self.model) | optimizer_state(self.model, self.optimizer)[0]
        return self.saver.whole({name: Chunk.of(tensor) for name, tensor in tensors.items()})


def logits(whole: dict[str, Tensor]) -> Tensor:
    """Of the plain model."""
    model = plain(0)
    model.load_state_dict({name[6:]: tensor for name, tensor in whole.items() if name.startswith("model/")})
    with torch.no_grad():
        found: Tensor = model(TOKENS)
    return found


def save_all(folder: Path, places: dict[str, Place]) -> None:
    for name, place in places.items():
        case = Case(place, folder / name, seed=list(LAYOUTS).index(name))
        for step in (1, 2):
            case.step()
            case.saver.save(step, Extra({}, {"layout": name}))
        whole = case.whole()
        case.saver.close()
        if place.ranks.leads:
            save_file({key: tensor.contiguous() for key, tensor in whole.items()}, folder / f"{name}.safetensors")


def load_all(folder: Path, places: dict[str, Place]) -> None:
    for there, place in places.items():
        found: dict[str, Any] = {}
        for here in LAYOUTS:
            case = Case(place, folder / here, 77)
            rest = case.saver.restore()
            whole = case.whole()
            answers = case.runner.answers(TOKENS)
            case.saver.close()
            expected = load_file(folder / f"{here}.safetensors")
            off = (
                float((answers - logits(expected)).abs().max())
                if place.layout.owns_loss and answers is not None
                else 0.0
            )
            worst = max(place.ranks.gather(off))
            if place.ranks.leads:
                found[here] = {
                    "values": rest.values if rest else None,
                    "differ": [key for key in expected.keys() | whole.keys() if not _same(expected, whole, key)],
                    "logits_off": worst,
                }
        if place.ranks.leads:
            (folder / f"found-{there}.json").write_text(json.dumps(found))


def _same(one: dict[str, Tensor], other: dict[str, Tensor], key: str) -> bool:
    return key in one and key in other and torch.equal(one[key], other[key])


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    places: dict[str, Place] = {}
    for name, (sizes, members) in LAYOUTS.items():
        grid = torch.tensor(members).reshape(sizes)
        mesh = DeviceMesh("cpu", grid, mesh_dim_names=DIMENSIONS) if len(members) > 1 else None
        group = dist.new_group(members, backend="gloo", sort_ranks=False) if mesh else None
        if rank in members:
            place = members.index(rank)
            places[name] = Place(SomeRanks(place, len(members), group=group), Layout(sizes, place), mesh)
    save_all(folder, places)
    dist.barrier()
    load_all(folder, places)
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    """Fork the ranks, so that what torch imports is imported once. Returns the exit code."""
    import_module("torch._dynamo")  # which the first optimiser does

    ranks = [multiprocessing.get_context("fork").Process(target=work, args=(folder, rank)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
