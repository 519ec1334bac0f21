"""What Ray Train does before the ranks of a training run: it tells them their places, and where to meet.

Ray's own backend connects them as well, by a store that listens on all addresses of the machine.
"""

import os
import socket
from typing import Any

import ray
from ray.train import get_context
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from pipelines.runtime.listeners import use_interface


class Unconnected(TorchConfig):
    """For ranks that connect by themselves (`ranks.joined`)."""

    @property
    def backend_cls(self) -> "type[Places]":
        return Places


class Places(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set torchrun's variables in each worker."""
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_place, address, port)


def _address() -> str:
    """Of this machine in the cluster."""
    about: Any = ray.util
    return str(about.get_node_ip_address())


def _free_address() -> tuple[str, int]:
    """The address, and a port that nobody uses."""
    address = _address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as free:
        return address, int(free.getsockname()[1])


def _set_place(address: str, port: int) -> None:
    place = get_context()
    use_interface(_address())
    os.environ.update(
        {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(place.get_world_rank()),
            "WORLD_SIZE": str(place.get_world_size()),
            "LOCAL_RANK": str(place.get_local_rank()),
            "LOCAL_WORLD_SIZE": str(place.get_local_world_size()),
        }
    )
