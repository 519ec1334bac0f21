"""The processes that train together."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.runtime.listeners import store_on, use_interface
from pipelines.runtime.loopback import LOOPBACK, is_loopback, require_loopback

#: Variables of a rank's place, the first that is there, and what holds without them.
PLACE = (
    (("RANK",), 0),
    (("WORLD_SIZE",), 1),
    (("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
    (("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), 0),
)
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world` processes, `local_rank` of `local_world` on its machine (0: unknown)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """As torchrun sets it, and where it doesn't, Slurm or Open MPI; else one rank."""
        return cls(*(int(next((environment[n] for n in names if n in environment), d)) for names, d in PLACE))

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and speaks to people and to MLflow."""
        return self.rank == 0

    def sum(self, *values: float | Tensor, device: torch.device, group: Any = None) -> list[float]:
        """Sums over all ranks, in float64 where the device has it; one all-reduce, in `group` instead of the default
        one where it is given."""
        wide = torch.float32 if device.type == "mps" else torch.float64
        if self.world == 1:
            return [float(value) for value in values]
        totals = torch.stack([torch.as_tensor(value, dtype=wide, device=device) for value in values])
        dist.all_reduce(totals, group=group)
        return [float(total) for total in totals.tolist()]

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def side_group(self, timeout: timedelta | None = None) -> Any:
        """A process group of all ranks over the hosts' network, for a thread of its own; None for a single rank."""
        return dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None

    def host_group(self, device: torch.device, timeout: timedelta | None = None) -> Any:
        """A process group in which the hosts of ranks on `device` sum up what no device is needed for; None, the
        default group, where that is one."""
        return self.side_group(timeout) if device.type != "cpu" else None

    @property
    def connected(self) -> bool:
        """Whether the ranks can speak: a trainer of one's own may have ended the connection."""
        return self.world == 1 or dist.is_initialized()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(ranks: Ranks, device: torch.device, timeout: timedelta | None = None) -> Iterator[None]:
    """Inside, the ranks are connected; a collective that takes longer than `timeout` (None: torch's own) fails. A
    connection that is there already is used and left. On one machine all of it stays on the loopback address."""
    if ranks.world == 1 or dist.is_initialized():
        yield
        return
    device_id = device if device.type != "cpu" else None
    if ranks.local_world == ranks.world:  # somebody else may have named this machine by its address in a network
        os.environ["MASTER_ADDR"] = LOOPBACK
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if is_loopback(host):
        require_loopback("The ranks of this machine speak through it.")
        use_interface(host)
    with store_on(host, int(port)) if ranks.leads and port.isdecimal() else nullcontext():
        dist.init_process_group(BACKENDS[device.type], timeout=timeout, device_id=device_id)
        try:
            yield
        finally:
            if ranks.connected:
                dist.destroy_process_group()
