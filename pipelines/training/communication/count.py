"""What a step sends in the layouts whose collectives torch starts by itself (FSDP2, tensor, pipeline)."""

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountSent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, `bytes` grows by what this rank sends, and `calls` by one a collective.

    Of the bytes b of a collective's largest tensor, each of n ranks sends around a ring b · (n - 1) / n, a sum twice
    that, and one that sends to one other all of it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0.0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._schema.name.partition("::")[2].replace("_", ""), (args, result))
        return result

    def _count(self, name: str, values: Any) -> None:
        leaves = tree_leaves(values)
        ranks = next((size for leaf in leaves if (size := _ranks_of(leaf))), dist.get_world_size())
        if name == "send":
            share = 1.0
        elif name.startswith("allreduce"):
            share = 2 * (ranks - 1) / ranks
        elif name.startswith(("allgather", "reducescatter", "alltoall", "broadcast")):
            share = (ranks - 1) / ranks
        else:  # waiting, receiving, barriers
            return
        self.bytes += share * max((leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)), default=0)
        self.calls += 1


def _ranks_of(leaf: Any) -> int | None:
    """Of a process group, as its object or by its name; None for anything else."""
    try:
        if isinstance(leaf, str):
            find: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
            return int(find(leaf).size())
        if type(leaf).__name__ == "ScriptObject":
            return int(dist.ProcessGroup.unbox(leaf).size())
    except (RuntimeError, KeyError, ValueError):  # another kind of object, or another word
        pass
    return None
