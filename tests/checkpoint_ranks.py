"""Four ranks, in which every parallel layout saves a checkpoint, and then every layout loads each of them.

python tests/checkpoint_ranks.py FOLDER      the first rank of a layout writes FOLDER/found-<layout>.json
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
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pipelines.models.transformer import Transformer
from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.chunks import Chunk
from pipelines.training.checkpoints.state import model_tensors, optimizer_state
from pipelines.training.ranks import Ranks
from storage.lake import Zone

WORLD = 4
#: Layout → its ranks in the shape of its mesh. Some share ranks, so that layouts work side by side.
LAYOUTS: dict[str, list[Any]] = {
    "one": [0], "ddp 2": [0, 1], "fsdp 2": [2, 3], "tensor 2": [1, 2], "pipeline 2": [3, 0],
    "fsdp 2 × tensor 2": [[0, 1], [2, 3]],
}  # fmt: skip
SIZES = {"vocab_size": 33, "seq_len": 8, "dim": 12, "layers": 2, "heads": 2, "hidden": 20}


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


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(**SIZES, tied=False)  # type: ignore[arg-type]


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    column, row = ColwiseParallel(), RowwiseParallel()
    for block in model.blocks:  # type: ignore[union-attr]
        parts = {"query": column, "key": column, "value": column, "out": row}
        plan = {f"attention.{name}": style for name, style in parts.items()}
        parallelize_module(block, mesh, plan | {"mlp.gate": column, "mlp.up": column, "mlp.down": row})
    return model


def sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def stage(model: nn.Module, place: int) -> nn.Module:
    """The first or second half, under the names of the whole; the embedding on both, as if its weights were shared."""
    model.blocks = nn.ModuleDict({str(place): model.blocks[place]})  # type: ignore[index, assignment]
    if place == 0:
        del model.norm, model.head
    return model


def build(name: str, mesh: DeviceMesh | None, seed: int) -> nn.Module:
    model = plain(seed)
    if name == "tensor 2":
        return tensor_parallel(model, _of(mesh))
    if name == "fsdp 2":
        return sharded(model, _of(mesh))
    if name == "pipeline 2":
        return stage(model, _of(mesh).get_local_rank())
    if name == "fsdp 2 × tensor 2":
        return sharded(tensor_parallel(model, _of(mesh)["tensor"]), _of(mesh)["shard"])
    return model


def _of(mesh: DeviceMesh | None) -> DeviceMesh:
    assert mesh is not None
    return mesh


class Case:
    """A model in a layout, on the ranks that it has."""

    def __init__(self, name: str, ranks: SomeRanks, mesh: DeviceMesh | None, folder: Path, seed: int) -> None:
        self.model = build(name, mesh, seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.saver = Saver(Zone(folder), Rules(), ranks, ranks.group, self.model, self.optimizer)

    def step(self) -> None:
        """A step whose gradient is a function of each weight, so that it is the same in every layout."""
        for parameter in self.model.parameters():
            parameter.grad = parameter.detach() * 0.5 + 0.25
        self.optimizer.step()

    def whole(self) -> dict[str, Tensor]:
        tensors = model_tensors(self.model) | optimizer_state(self.model, self.optimizer)[0]
        return self.saver.whole({name: Chunk.of(tensor) for name, tensor in tensors.items()})


def logits(whole: dict[str, Tensor]) -> Tensor:
    model = plain(0)
    model.load_state_dict({name[6:]: tensor for name, tensor in whole.items() if name.startswith("model/")})
    with torch.no_grad():
        found: Tensor = model(torch.arange(16).reshape(2, 8) % SIZES["vocab_size"])
    return found


def save_all(folder: Path, places: dict[str, tuple[SomeRanks, DeviceMesh | None]]) -> None:
    for name, (ranks, mesh) in places.items():
        case = Case(name, ranks, mesh, folder / name, seed=list(LAYOUTS).index(name))
        for step in (1, 2):
            case.step()
            case.saver.save(step, Extra({}, {"layout": name}))
        whole = case.whole()
        case.saver.close()
        if ranks.leads:
            save_file({key: tensor.contiguous() for key, tensor in whole.items()}, folder / f"{name}.safetensors")


def load_all(folder: Path, places: dict[str, tuple[SomeRanks, DeviceMesh | None]]) -> None:
    for there, (ranks, mesh) in places.items():
        found: dict[str, Any] = {}
        for here in LAYOUTS:
            case = Case(there, ranks, mesh, folder / here, 77)
            rest = case.saver.restore()
            whole = case.whole()
            case.saver.close()
            if ranks.leads:
                expected = load_file(folder / f"{here}.safetensors")
                found[here] = {
                    "values": rest.values if rest else None,
                    "differ": [key for key in expected.keys() | whole.keys() if not _same(expected, whole, key)],
                    "logits": float((logits(whole) - logits(expected)).abs().max()),
                }
        if ranks.leads:
            (folder / f"found-{there}.json").write_text(json.dumps(found))


def _same(one: dict[str, Tensor], other: dict[str, Tensor], key: str) -> bool:
    return key in one and key in other and torch.equal(one[key], other[key])


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    places: dict[str, tuple[SomeRanks, DeviceMesh | None]] = {}
    for name, shape in LAYOUTS.items():
        members = torch.tensor(shape).flatten().tolist()
        names = ("shard", "tensor") if isinstance(shape[0], list) else ("all",)
        mesh = DeviceMesh("cpu", shape, mesh_dim_names=names) if len(members) > 1 else None
        group = dist.new_group(members, backend="gloo", sort_ranks=False) if mesh else None
        if rank in members:
            places[name] = SomeRanks(members.index(rank), len(members), group=group), mesh
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
